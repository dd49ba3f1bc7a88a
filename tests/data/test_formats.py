"""One entry per format: for training, for scoring, and for the messages that list them."""

import numpy as np
import pytest
from data_files import tiny, write_parquet

from nnbuild.data import formats
from nnbuild.data.array_stream import ArrayStream
from nnbuild.data.formats import FORMATS, Format, format_of, load_path, open_stream
from nnbuild.data.locations import location_at
from nnbuild.data.streams import StreamOptions
from nnbuild.errors import DataError

SHAPE = (6, 6, 1)


def message(function, *arguments):
    with pytest.raises(DataError) as caught:
        function(*arguments)
    return str(caught.value)


def read_csv(path):
    values = np.loadtxt(path, delimiter=",", dtype=np.uint8, skiprows=1, ndmin=2)
    return values[:, 1:].reshape(-1, *SHAPE[:2]), values[:, 0]


@pytest.fixture
def with_csv(monkeypatch):
    """Add a format as a contributor would: its reader and one entry."""

    def read(path, _):
        images, labels = read_csv(path)
        return {"train_images": images, "train_labels": labels}, ""

    entry = Format(
        "CSV",
        "CSV files",
        suffixes=(".pixels",),
        load_file=formats._of_arrays(read),
        stream_file=lambda address, files, options: ArrayStream(
            address, read_csv(files[0].path)[0], options
        ),
    )
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, entry))


def test_new_format_takes_one_entry(with_csv, tmp_path):
    arrays = tiny()
    images = arrays.train_images.reshape(len(arrays.train_images), -1)
    rows = np.column_stack([arrays.train_labels, images])
    path = tmp_path / "tiny.pixels"
    np.savetxt(path, rows, fmt="%d", delimiter=",", header="label,pixels")
    dataset = load_path(path)
    assert len(dataset.train) + len(dataset.test) == len(rows)
    stream = open_stream(str(path), StreamOptions(SHAPE))
    (batch,) = stream.read(stream.chunks()[0], len(rows))
    np.testing.assert_array_equal(batch.images.reshape(images.shape), images)
    (tmp_path / "x.txt").touch()
    assert "CSV" in message(load_path, tmp_path / "x.txt")
    assert "CSV" in message(open_stream, str(tmp_path / "x.txt"), StreamOptions(SHAPE))
    (tmp_path / "void").mkdir()
    assert "CSV files" in message(load_path, tmp_path / "void")


@pytest.mark.parametrize("name", ["x", "x.dat", "x.npz", "x.png", "x.PARQUET"])
def test_content_precedes_the_suffix(tmp_path, name):
    arrays = tiny()
    write_parquet(tmp_path / "in.parquet", arrays.train_images, arrays.train_labels)
    (tmp_path / "in.parquet").rename(tmp_path / name)
    assert format_of(location_at(tmp_path / name)).name == "Parquet"
    assert len(open_stream(str(tmp_path / name), StreamOptions(SHAPE)).chunks()) == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.npz", b"\0\0\x08\3", ".npz"),
        ("a.png", b"\x1f\x8b\x08\0", "picture"),
        ("a.parquet", b"", "Parquet"),
        ("a", b"\0\0\x08\3", "IDX"),
        ("a.gz", b"\x1f\x8b\x08\0", "IDX"),
        ("a.zip", b"PK\3\4", ".npz"),
        ("a.txt", b"text", None),
        ("a", b"", None),
    ],
)
def test_suffix_precedes_a_hint(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    match = format_of(location_at(tmp_path / name))
    assert (match and match.name) == expected
