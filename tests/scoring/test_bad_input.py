"""Invalid input of scoring: one line, exit code 2, and an unchanged store."""

import gzip
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import call, tree_digest
from score_data import images, parquet

from nnbuild.store import Store

RUN = "20200101T000000000Z-abcdef"


def _text(path):
    path.write_text("no images here")
    return path


def _header_only(path):
    path.write_bytes(struct.pack(">HBBIII", 0, 8, 3, 2**31 - 1, 28, 28))
    return path


def _truncated(path):
    parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def _bytes(rows, size=64):
    return pa.array([b"\0" * size] * rows, pa.binary(size))


def _two(folder):
    folder.mkdir()
    parquet(folder / "a.parquet")
    parquet(folder / "b.parquet", customer=np.arange(len(images())))
    return folder


def _empty(folder):
    folder.mkdir()
    return folder


def _npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def _idx(path, shape, payload=None):
    path.write_bytes(
        struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        + (payload or bytes(int(np.prod(shape))))
    )
    return path


def _gzip(path, content):
    path.write_bytes(content)
    return path


def _lists(path, *rows):
    return _table(path, image=pa.array(list(rows)))


def _pictures(folder, content=b"no picture"):
    folder.mkdir()
    (folder / "a.png").write_bytes(content)
    return folder


GREY = [0.0] * 64

CASES = [
    ("npz of other keys", lambda at: ["--input", _npz(at / "in.npz", pixels=np.zeros(3))], "lacks"),
    (
        "npz of objects",
        lambda at: ["--input", _npz(at / "in.npz", images=np.array([{}, 1]))],
        "pickled objects",
    ),
    ("npz that is none", lambda at: ["--input", _text(at / "in.npz")], "not a readable .npz"),
    (
        "npz of another size",
        lambda at: ["--input", _npz(at / "i.npz", images=np.zeros((2, 9, 9), "u1"))],
        "(9, 9, 1)",
    ),
    (
        "npz beyond 255",
        lambda at: ["--input", _npz(at / "i.npz", images=np.full((2, 8, 8), 256))],
        "pixels from 256",
    ),
    (
        "npz of NaN",
        lambda at: ["--input", _npz(at / "i.npz", images=np.full((2, 8, 8), np.nan))],
        "image 0 (counted from 0) contains NaN",
    ),
    (
        "idx of labels",
        lambda at: ["--input", _idx(at / "labels-idx1-ubyte", (5,))],
        "images of shape (5,)",
    ),
    (
        "idx of another size",
        lambda at: ["--input", _idx(at / "images-idx3-ubyte", (2, 9, 9))],
        "(9, 9, 1)",
    ),
    (
        "idx truncated",
        lambda at: ["--input", _idx(at / "images-idx3-ubyte", (2, 8, 8), b"0" * 9)],
        "claims shape",
    ),
    (
        "gzip truncated",
        lambda at: [
            "--input",
            _gzip(
                at / "a.gz",
                gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 9, 8, 8) + bytes(576))[:-9],
            ),
        ],
        "damaged or unreadable",
    ),
    (
        "floats below 0",
        lambda at: ["--input", _lists(at / "in.parquet", GREY, [-1.0] * 64)],
        "row group 0, row 1",
    ),
    (
        "floats beyond 255",
        lambda at: ["--input", _lists(at / "in.parquet", GREY, [300.0] * 64)],
        "row group 0, row 1",
    ),
    (
        "NaN",
        lambda at: ["--input", _lists(at / "in.parquet", GREY, [float("nan")] * 64)],
        "row group 0, row 1",
    ),
    ("a null", lambda at: ["--input", _lists(at / "in.parquet", GREY, None)], "row group 0, row 1"),
    (
        "lists of two lengths",
        lambda at: ["--input", _lists(at / "in.parquet", GREY, [0.0] * 63)],
        "row group 0, row 1",
    ),
    (
        "no picture in bytes",
        lambda at: ["--input", _table(at / "in.parquet", image=[b"no picture"])],
        "in.parquet, row group 0, row 0: not a readable picture",
    ),
    ("no picture", lambda at: ["--input", _pictures(at / "pictures")], "a.png, row group 0"),
    (
        "a folder of texts",
        lambda at: ["--input", _text(_empty(at / "texts") / "a.txt").parent],
        "neither Parquet nor picture files",
    ),
    ("no input", lambda _: [], "give --input"),
    ("missing", lambda at: ["--input", at / "none.parquet"], "no such input"),
    ("a glob of nothing", lambda at: ["--input", at / "*.parquet"], "no such input"),
    (
        "an empty folder",
        lambda at: ["--input", _empty(at / "empty")],
        "neither Parquet nor picture files",
    ),
    ("text", lambda at: ["--input", _text(at / "in.txt")], "unknown format"),
    (
        "text as parquet",
        lambda at: ["--input", _text(at / "in.parquet")],
        "not readable as Parquet",
    ),
    ("truncated", lambda at: ["--input", _truncated(at / "in.parquet")], "not readable as Parquet"),
    (
        "a header of 2^31",
        lambda at: ["--input", _header_only(at / "images-idx3-ubyte")],
        "claims shape",
    ),
    (
        "no image column",
        lambda at: ["--input", _table(at / "in.parquet", pixels=_bytes(3))],
        "no column 'image'",
    ),
    (
        "texts",
        lambda at: ["--input", _table(at / "in.parquet", image=["a", "b"])],
        "column 'image' is string",
    ),
    (
        "another size",
        lambda at: ["--input", _table(at / "in.parquet", image=_bytes(3, 81))],
        "row group 0, row 0",
    ),
    (
        "a column that not all have",
        lambda at: ["--input", _two(at / "two"), "--keep", "customer"],
        "no column 'customer'",
    ),
    (
        "keep",
        lambda at: ["--input", parquet(at / "in.parquet"), "--keep", "lable"],
        "did you mean 'label'",
    ),
    (
        "keep twice",
        lambda at: ["--input", parquet(at / "in.parquet"), "--keep", "label"],
        "its name is taken by nnbuild's own",
    ),
    (
        "id",
        lambda at: ["--input", parquet(at / "in.parquet"), "--id", "image"],
        "expected integers",
    ),
    (
        "columns of an npz",
        lambda at: ["--input", _npz(at / "in.npz", images=images(2)), "--keep", "a"],
        "only Parquet files have columns",
    ),
    (
        "where",
        lambda at: ["--input", parquet(at / "in.parquet"), "--where", "confidense<1"],
        "did you mean 'confidence'",
    ),
    (
        "where types",
        lambda at: ["--input", parquet(at / "in.parquet"), "--where", "confidence<'a'"],
        "different types",
    ),
    (
        "top k",
        lambda at: ["--input", parquet(at / "in.parquet"), "--top-k", "4"],
        "expected at most 3",
    ),
    (
        "batch 0",
        lambda at: ["--input", parquet(at / "in.parquet"), "--batch-size", "0"],
        "--batch-size",
    ),
    ("engine", lambda at: ["--input", parquet(at / "in.parquet"), "--engine", "torch"], "--engine"),
    (
        "on error",
        lambda at: ["--input", parquet(at / "in.parquet"), "--on-error", "skip"],
        "--on-error",
    ),
    (
        "an unknown run",
        lambda at: ["--input", parquet(at / "in.parquet"), "--model", RUN],
        "no committed run",
    ),
    (
        "an unknown model",
        lambda at: ["--input", parquet(at / "in.parquet"), "--model", "lab"],
        "neither champion",
    ),
    (
        "no digest",
        lambda at: ["--input", parquet(at / "in.parquet"), "--model", _text(at / "m.onnx")],
        "set it as digest",
    ),
    (
        "another digest",
        lambda at: [
            "--input",
            parquet(at / "in.parquet"),
            "--model",
            _text(at / "m.onnx"),
            "--digest",
            "0" * 64,
        ],
        "its SHA-256 is",
    ),
    (
        "a digest of a run",
        lambda at: ["--input", parquet(at / "in.parquet"), "--digest", "0" * 64],
        "applies to model files only",
    ),
    ("resume", lambda _: ["--resume", RUN], "no scoring job"),
    ("resume elsewhere", lambda _: ["--resume", "../../etc"], "of a scoring job"),
    ("resume with options", lambda _: ["--resume", RUN, "--logits"], "remove --logits"),
    (
        "output",
        lambda at: ["--input", parquet(at / "in.parquet"), "--output", at],
        "not empty",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input_is_one_line(capfd, trained, tmp_path, arguments, says):
    given = arguments(tmp_path)
    before = tree_digest(trained)
    outcome = call(capfd, "score", *given, "--store", trained)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert says in outcome.err
    assert tree_digest(trained) == before


def test_changed_model_is_refused(capfd, trained, tmp_path):
    import shutil

    store = Store(shutil.copytree(trained, tmp_path / "store"))
    path = store.root / "runs" / store.run_ids()[0] / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    outcome = call(
        capfd, "score", "--input", parquet(tmp_path / "in.parquet"), "--store", store.root
    )
    assert outcome.code == 2
    assert "was changed: " in outcome.err


def test_score_without_champion_is_refused(capfd, tmp_path):
    Store(tmp_path / "store").create()
    outcome = call(
        capfd, "score", "--input", parquet(tmp_path / "in.parquet"), "--store", tmp_path / "store"
    )
    assert outcome.code == 2
    assert "has no champion yet" in outcome.err
    assert not any((tmp_path / "store" / "staging").iterdir())
