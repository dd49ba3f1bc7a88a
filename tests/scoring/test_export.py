"""Exports for serving: both outputs equal nnbuild's own."""

import hashlib

import numpy as np
import onnxruntime
import pytest
from command_line import call, tree_digest
from score_data import images, parquet, rows, scored

from nnbuild.errors import ConfigError
from nnbuild.logits import softmax
from nnbuild.runtime.tensorflow import tf
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.export import export_run
from nnbuild.scoring.models import resolve_model


def answers(path, kind):
    """Logits and probabilities of some images."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_outputs()] == ["logits", "probabilities"]
        return session.run(["logits", "probabilities"], {"pixels": images(50)})
    saved = tf.saved_model.load(str(path))
    assert set(saved.signatures) == {"serving_default", "logits", "probabilities"}
    pixels = tf.constant(images(50))
    found = [
        saved.signatures[name](pixels=pixels)[name].numpy() for name in ("logits", "probabilities")
    ]
    assert np.array_equal(
        saved.signatures["serving_default"](pixels=pixels)["probabilities"].numpy(), found[1]
    )
    return found


@pytest.mark.parametrize("kind", ["onnx", "savedmodel"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_export_has_both_outputs(store, tmp_path, kind, calibrated):
    path = export_run(store, "champion", tmp_path / "exported", kind, calibrated=calibrated)
    logits, probabilities = answers(path, kind)
    scores = rows(store, scored(store, input=parquet(tmp_path / "in.parquet"), logits=True))
    wanted = np.stack([scores[f"logit_{label}"].to_numpy()[:50] for label in range(3)], axis=1)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    temperature = resolve_model(store, ScoreConfig(input="-")).temperature if calibrated else 1.0
    np.testing.assert_allclose(
        probabilities, softmax(logits, temperature=temperature), rtol=1e-5, atol=1e-6
    )
    assert logits.dtype == probabilities.dtype == np.float32


def test_exported_file_scores_like_run(store, tmp_path):
    source = parquet(tmp_path / "in.parquet")
    path = export_run(store, "champion", tmp_path / "served.onnx", "onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    by_file = scored(store, input=source, model=str(path), digest=digest)
    assert rows(store, by_file).equals(rows(store, scored(store, input=source)))


def test_export_is_reproducible(store, tmp_path):
    first, second = (
        export_run(store, "champion", tmp_path / name, "onnx").read_bytes() for name in ("a", "b")
    )
    assert first == second


def test_the_command(capfd, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = call(capfd, "export", "champion", "--format", "onnx", "--store", store.root, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["output"] == str(tmp_path / "champion.onnx")
    before = tree_digest(tmp_path)
    for options, says in (
        (["champion", "--format", "onnx"], "exists"),
        (["champion", "--format", "coreml", "--output", "x"], "'savedmodel', 'onnx'"),
        (["lab", "--output", "x"], "neither champion"),
        (["20200101T000000000Z-abcdef", "--output", "x"], "no committed run"),
    ):
        outcome = call(capfd, "export", *options, "--store", store.root)
        assert outcome.code == 2
        assert says in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert tree_digest(tmp_path) == before


def test_calibrated_needs_a_temperature(store, tmp_path, monkeypatch):
    from dataclasses import replace

    from nnbuild.scoring import export

    found = replace(resolve_model(store, ScoreConfig(input="-")), temperature=None)
    monkeypatch.setattr(export, "resolve_model", lambda *_: found)
    with pytest.raises(ConfigError, match="has no temperature"):
        export_run(store, "champion", tmp_path / "x.onnx", "onnx", calibrated=True)
