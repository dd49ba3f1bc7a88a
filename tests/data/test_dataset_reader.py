"""Datasets of the store: round trips, and files that were changed."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_files import tiny

from nnbuild.data import dataset_reader, dataset_writer
from nnbuild.data.dataset import Dataset, Split
from nnbuild.errors import DataError


def dataset(shape=(6, 6, 1), **options) -> Dataset:
    arrays = tiny(shape=shape, **options)
    return Dataset(
        "tiny",
        Split(arrays.train_images, arrays.train_labels.astype(np.int16)),
        Split(arrays.test_images, arrays.test_labels.astype(np.int16)),
        ("a", "b", "ü", "d/e"),
        "made up",
    )


@pytest.fixture
def stored(tmp_path):
    dataset_writer.write_dataset(dataset(), tmp_path / "stored")
    return tmp_path / "stored"


def refused(folder) -> str:
    with pytest.raises(DataError) as caught:
        dataset_reader.read_dataset(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", [(6, 6, 1), (5, 7, 3), (1, 1, 1)])
@pytest.mark.parametrize("train", [4, 40, 40_000])
def test_dataset_round_trip_is_identity(tmp_path, shape, train):
    written = dataset(shape, train=train)
    dataset_writer.write_dataset(written, tmp_path)
    read = dataset_reader.read_dataset(tmp_path)
    assert read.digest == written.digest
    assert (read.name, read.class_names, read.source) == (
        written.name,
        written.class_names,
        written.source,
    )
    for given, found in ((written.train, read.train), (written.test, read.test)):
        np.testing.assert_array_equal(given.images, found.images)
        np.testing.assert_array_equal(given.labels, found.labels)
        assert found.labels.dtype == np.int16


def test_files_are_reproducible(tmp_path, stored):
    dataset_writer.write_dataset(dataset(), tmp_path / "again")
    for file in stored.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_what_is_written_is_described(stored):
    description = json.loads((stored / "dataset.json").read_text())
    assert description["digest"] == dataset().digest
    assert description["class_names"] == ["a", "b", "ü", "d/e"]
    assert (description["train"]["rows"], description["test"]["rows"]) == (40, 20)
    metadata = pq.read_schema(stored / "train.parquet").metadata
    assert metadata[b"height"] == b"6"
    assert b"nnbuild.schema_version" in metadata


def rewritten(folder: Path, **options: object) -> Path:
    """Rewrite the files as another version of pyarrow might: other bytes, equal content."""
    description = json.loads((folder / "dataset.json").read_text())
    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, **options)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert digest != description[path.stem]["sha256"]
        description[path.stem] |= {"bytes": len(content), "sha256": digest}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def without_digests(folder: Path) -> Path:
    """Remove what version 0.1 did not write."""
    description = json.loads((folder / "dataset.json").read_text())
    for path in folder.glob("*.digests"):
        path.unlink()
        del description[path.stem]["content"], description[path.stem]["image_digests"]
    del description["held_out"]
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "options", [{"compression": "gzip"}, {"row_group_size": 7, "version": "1.0"}]
)
def test_fingerprint_ignores_file_format(stored, options, old):
    written = dataset()
    folder = rewritten(without_digests(stored) if old else stored, **options)
    found = dataset_reader.fingerprint(folder)
    assert found.test_set == written.test.content_digest
    assert (found.image_shape, found.class_names) == ((6, 6, 1), ("a", "b", "ü", "d/e"))
    np.testing.assert_array_equal(found.images["test"], written.test.image_digests)
    np.testing.assert_array_equal(found.seen, written.train.image_digests)


@pytest.mark.parametrize("change", ["pixel", "label"])
def test_fingerprint_depends_on_content(tmp_path, change):
    changed, test = dataset(), dataset().test
    images, labels = test.images.copy(), test.labels.copy()
    if change == "pixel":
        images[3, 2, 1] ^= 1
    else:
        labels[3] ^= 1
    dataset_writer.write_dataset(replace(changed, test=Split(images, labels)), tmp_path / "changed")
    found = dataset_reader.fingerprint(tmp_path / "changed")
    assert found.test_set != test.content_digest
    same = found.images["test"] == test.image_digests
    assert np.flatnonzero(~same).tolist() == ([3] if change == "pixel" else [])


def test_changed_digests_are_refused(stored):
    path = stored / "test.digests"
    content = path.read_bytes()
    for broken in (b"", content[:-1], content + b"x", content[:-1] + b"\0"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"test\.digests"):
            dataset_reader.fingerprint(stored)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        dataset_reader.fingerprint(stored)


@pytest.mark.parametrize("name", ["train.parquet", "test.parquet", "dataset.json"])
def test_changed_file_is_refused(stored, name):
    content = (stored / name).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 1
    for broken in (content[:-2], content[: len(content) // 2], b"", content + b"x", bytes(flipped)):
        (stored / name).write_bytes(broken)
        if name == "dataset.json" and broken == bytes(flipped):
            continue  # a changed name is valid; the digest in the path of the store detects it
        assert name in refused(stored)
    (stored / name).unlink()
    assert "no such file" in refused(stored)


def test_swapped_splits_are_refused(stored):
    train, test = stored / "train.parquet", stored / "test.parquet"
    content = train.read_bytes(), test.read_bytes()
    train.write_bytes(content[1])
    test.write_bytes(content[0])
    refused(stored)


@pytest.mark.parametrize(
    "changed",
    [
        {"schema_version": "0"},
        {"name": "../evil"},
        {"digest": "short"},
        {"height": 0},
        {"height": 7},
        {"width": "wide"},
        {"class_names": ["a"]},
        {"train": None},
        {"train": {"rows": 1}},
        {"extra": 1},
    ],
)
def test_other_description_is_refused(stored, changed):
    path = stored / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    refused(stored)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", "[" * 100_000, '"\\ud800"', "9" * 5000, "\udcff"]
)
def test_invalid_description_is_refused(stored, text):
    (stored / "dataset.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(stored)


def test_tables_do_not_import_pandas(tmp_path):
    code = f"""
import sys
from pathlib import Path
import numpy as np
from nnbuild.data import checks, dataset_reader, dataset_writer
from nnbuild.data.dataset import Dataset, Split
split = Split(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1], np.int16))
dataset_writer.write_dataset(Dataset("a", split, split, ("0", "1"), ""), Path({str(tmp_path)!r}))
checks.check(dataset_reader.read_dataset(Path({str(tmp_path)!r})))
raise SystemExit("pandas" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def calls_of(function, *arguments):
    """Count the calls of Python and C functions."""
    count = 0

    def seen(frame, event, _):
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(seen)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


def test_reading_has_no_loop_over_rows(tmp_path):
    folders = []
    for rows in (1_000, 20_000):
        folders.append(tmp_path / f"{rows}")
        dataset_writer.write_dataset(dataset((28, 28, 1), train=rows), folders[-1])
        dataset_reader.read_dataset(folders[-1])  # imports of the first call do not count
    few, many = (calls_of(dataset_reader.read_dataset, folder) for folder in folders)
    assert many < few + 1_000
