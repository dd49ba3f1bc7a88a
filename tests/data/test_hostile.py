"""For any bytes, every reader returns a dataset or raises an nnbuild error of one line."""

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import Arrays, scratch, tiny, write_every_form
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import JSON

from nnbuild.data import dataset_writer, parquet, sources
from nnbuild.errors import DataError, NnbuildError

MAGICS = [
    b"",
    b"\x1f\x8b\x08\x00",
    b"\0\0\x08\x03",
    b"PK\x03\x04",
    b"PAR1",
    b"\x93NUMPY\x01\x00",
    b"\x89PNG\r\n\x1a\n",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """A small dataset in every format, including that of the store."""
    folder = tmp_path_factory.mktemp("sound")
    arrays = tiny(train=8, test=4, classes=2)
    paths = write_every_form(folder, arrays)
    dataset_writer.write_dataset(load(paths["npz"]), folder / "stored")
    return paths | {
        "stored": folder / "stored",
        "one file": paths["parquet list"] / "train.parquet",
    }


def load(path):
    return sources.load(str(path), data_dir=None, cache=Path("/nonexistent"))


def harmless(path) -> None:
    """Load a file; pass if it gives a valid dataset or an nnbuild error."""
    try:
        dataset = load(path)
    except NnbuildError as error:
        message = str(error)
    else:
        message = dataset.name
        assert dataset.train.images.shape[1:] == dataset.image_shape
        assert len(dataset.train) == len(dataset.train.labels)
    assert message
    assert "\n" not in message


def copied(source: Path, folder: Path) -> tuple[Path, list[Path]]:
    """Copy a file or folder; return the copy and its files."""
    target = folder / source.name
    if source.is_file():
        target.write_bytes(source.read_bytes())
        return target, [target]
    files = []
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
        files.append(place)
    return target, files


FORMS = [
    "idx",
    "idx.gz",
    "npz",
    "pictures",
    "stored",
    "one file",
    "parquet fixed_size_binary",
    "parquet list",
    "parquet nested",
    "parquet tensor",
    "parquet hugging_face",
]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_changed_bytes_do_no_harm(sound, form, data):
    with scratch() as folder:
        path, files = copied(sound[form], folder)
        file = data.draw(st.sampled_from(files), "file")
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            # Headers, directories and footers are at the ends of a file.
            place = data.draw(
                st.integers(0, 60) | st.integers(-400, -1) | st.integers(0, len(content) - 1)
            )
            content[place % len(content)] = data.draw(st.integers(0, 255))
        file.write_bytes(bytes(content))
        harmless(path)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_cut_or_longer_files_are_harmless(sound, form, data):
    with scratch() as folder:
        path, files = copied(sound[form], folder)
        file = data.draw(st.sampled_from(files), "file")
        content = file.read_bytes()
        start = data.draw(st.integers(0, len(content)) | st.just(0))
        stop = data.draw(st.integers(start, len(content)))
        file.write_bytes(content[start:stop] + data.draw(st.binary(max_size=8)))
        harmless(path)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(MAGICS),
    st.binary(max_size=200),
    st.sampled_from(["a.npz", "a.parquet", "a", "a.gz"]),
)
def test_file_of_any_bytes_is_harmless(magic, content, name):
    with scratch() as folder:
        (folder / name).write_bytes(magic + content)
        harmless(folder / name)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(MAGICS),
    st.binary(max_size=200),
    st.sampled_from(["idx", "idx.gz", "pictures", "parquet png"]),
)
def test_folder_of_any_bytes_is_harmless(magic, content, form):
    with scratch() as folder:
        paths = write_every_form(folder, Arrays(*tiny(train=4, test=2, classes=2)))
        file = min(path for path in paths[form].rglob("*") if path.is_file())
        file.write_bytes(magic + content)
        harmless(paths[form])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_description_is_harmless(sound, data):
    with scratch() as folder:
        path, _ = copied(sound["stored"], folder)
        description = json.loads((path / "dataset.json").read_text())
        key = data.draw(st.sampled_from(sorted(description)))
        description[key] = data.draw(JSON)
        (path / "dataset.json").write_text(json.dumps(description))
        harmless(path)


def test_error_of_description_is_one_line(sound):
    for key in json.loads((sound["stored"] / "dataset.json").read_text()):
        with scratch() as folder:
            path, _ = copied(sound["stored"], folder)
            description = json.loads((path / "dataset.json").read_text())
            (path / "dataset.json").write_text(json.dumps(description | {key: "a\nb", "c\nd": 1}))
            harmless(path)
            (path / "dataset.json").write_text(json.dumps(description | {key: "a\nb"}))
            harmless(path)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_any_name_is_harmless(name):
    with pytest.raises(NnbuildError):
        load(f"no-such-{name}")


def test_metadata_that_abort_are_an_error(tmp_path):
    """Arrow aborts on histograms of another size, which random damage causes."""
    table = pa.table(
        {
            "image": pa.array([b"\0" * 64] * 50, pa.binary(64)),
            "label": pa.array(range(50), pa.int16()),
        }
    )
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, row_group_size=20)
    whole = path.read_bytes()
    (length,) = struct.unpack("<I", whole[-8:-4])
    random = np.random.default_rng(0)
    files = []
    for number in range(500):
        damaged = bytearray(whole)
        for place in random.integers(
            len(whole) - 8 - length, len(whole) - 8, random.integers(1, 4)
        ):
            damaged[place] = random.integers(0, 256)
        files.append(tmp_path / "damaged" / f"{number}.parquet")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_bytes(damaged)
    sound = list(files)
    while True:
        try:
            parquet.require_readable_metadata(sound)
        except DataError as error:
            sound.remove(Path(str(error).split(":")[0]))
        else:
            break
    assert len(sound) > len(files) - 50
    for file in sound:  # this process survives the files that were accepted
        with contextlib.suppress(pa.ArrowException, OSError):
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                for column in range(metadata.row_group(group).num_columns):
                    metadata.row_group(group).column(column)
