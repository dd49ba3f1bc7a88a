"""Test ONNX files of other programs: scored as declared, or refused in one line."""

import hashlib
import os
import socket

import numpy as np
import onnx_models
import pytest
from command_line import call, tree_digest
from score_data import ROWS, images, parquet, rows, scored

from nnbuild.engines import OnnxEngine, onnx_file
from nnbuild.errors import ContractError

EXTERNAL, BOMBS, UNUSABLE = (
    onnx_models.with_external_data(),
    onnx_models.bombs(),
    onnx_models.unusable(),
)


def arguments(path, content, source):
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return ["score", "--model", path, "--digest", digest, "--input", source]


def refused(capfd, store, *given):
    """What a command that must be refused says, on one line; the store is left as it was."""
    before = tree_digest(store)
    outcome = call(capfd, *given, "--store", store)
    assert outcome.code == 2, outcome
    assert len(outcome.err.splitlines()) == 1
    assert tree_digest(store) == before
    return outcome.err


@pytest.mark.parametrize("batch", [1, 7, 32, 500])
def test_fixed_batch_is_scored_in_pieces(store, tmp_path, batch):
    source = parquet(tmp_path / "in.parquet")
    found = []
    for name, made in (("free", onnx_models.model()), ("fixed", onnx_models.fixed(batch))):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(made.SerializeToString())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        done = scored(store, input=source, model=str(path), digest=digest, logits=True)
        assert done.rows == ROWS
        found.append(rows(store, done))
    np.testing.assert_allclose(
        found[1]["logit_0"].to_numpy(), found[0]["logit_0"].to_numpy(), rtol=1e-4, atol=1e-5
    )
    assert found[1]["predicted"].equals(found[0]["predicted"])


def test_fixed_batch_independent_of_threads():
    content = onnx_models.fixed(7).SerializeToString()
    alone, several = (OnnxEngine(content, threads=threads).logits(images()) for threads in (1, 3))
    assert alone.tobytes() == several.tobytes()
    assert len(alone) == ROWS


@pytest.mark.parametrize("name", UNUSABLE)
def test_onnx_unusable_gives_reason(capfd, trained, tmp_path, name):
    content, says = UNUSABLE[name]
    given = arguments(tmp_path / "m.onnx", content, parquet(tmp_path / "in.parquet"))
    error = refused(capfd, trained, *given)
    assert says in error
    assert "export the run again" not in error
    assert "m.onnx" in error


@pytest.mark.parametrize("name", EXTERNAL)
def test_external_data_is_refused(capfd, trained, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    given = arguments(tmp_path / "m.onnx", EXTERNAL[name], parquet(tmp_path / "in.parquet"))
    error = refused(capfd, trained, *given)
    assert "put them into the file by onnx.save_model" in error
    with pytest.raises(ContractError, match="in another file"):
        OnnxEngine(EXTERNAL[name])


@pytest.mark.parametrize("name", BOMBS)
def test_onnx_bomb_is_refused(name):
    content = BOMBS[name]
    assert len(content) < 20_000
    with pytest.raises(ContractError, match="expected at most"):
        onnx_file.check_file(content, "model m.onnx")


def test_onnx_own_export_is_accepted(store):
    for path in store.root.glob("runs/*/model.onnx"):
        onnx_file.check_file(path.read_bytes(), "the exported model")


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def _folder(path):
    path.mkdir()


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    ("make", "says"), [(_pipe, "a named pipe"), (_socket, "a socket"), (_folder, "a folder")]
)
def test_model_not_a_file_is_refused(capfd, trained, tmp_path, monkeypatch, make, says, link):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "m.onnx")
    if link:
        (tmp_path / "link.onnx").symlink_to("m.onnx")
    name = "link.onnx" if link else "m.onnx"
    source = parquet(tmp_path / "in.parquet")
    digests = [[], ["--digest", "0" * 64]]
    for digest in digests:
        error = refused(capfd, trained, "score", "--model", name, *digest, "--input", source)
        assert f"{name} is {says}" in error


def test_pipe_in_the_store_is_refused(capfd, store, tmp_path):
    path = store.root / "runs" / store.run_ids()[0] / "model.onnx"
    path.unlink()
    os.mkfifo(path)
    outcome = call(
        capfd, "score", "--input", parquet(tmp_path / "i.parquet"), "--store", store.root
    )
    assert outcome.code == 2
    assert "is a named pipe" in outcome.err
