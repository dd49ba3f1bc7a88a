"""Tables of files: CSV, TSV and Parquet with paths and labels."""

from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nnbuild.data import sources
from nnbuild.data.day_versions import DatedSource
from nnbuild.data.listing import fingerprint_of_source
from nnbuild.data.options import ReadOptions
from nnbuild.data.preprocessing import Preprocessing
from nnbuild.errors import DataError
from nnbuild.store import Store

CLASSES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    """Write twelve pictures of two classes, and return their folder."""
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (6, 6), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path


def rows(**columns):
    values = {
        "path": [f"pictures/{number}.png" for number in range(12)],
        "label": [CLASSES[number % 2] for number in range(12)],
        "camera": ["a, b"] * 12,
    }
    return values | columns


def write(folder, form, **columns):
    values = rows(**columns)
    path = folder / f"table.{form}"
    if form == "parquet":
        pq.write_table(pa.table(values), path)
        return path
    mark = "\t" if form == "tsv" else ","
    lines = [mark.join(values)]
    lines += [
        mark.join(f'"{each}"' for each in cells) for cells in zip(*values.values(), strict=True)
    ]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    return path


def load(path, **options):
    return sources.load(str(path), data_dir=None, cache=path.parent, options=ReadOptions(**options))


def message(path, **options):
    with pytest.raises(DataError) as caught:
        load(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_forms_give_equal_datasets(folder, form):
    dataset = load(write(folder, form))
    for number in range(12):
        (folder / CLASSES[number % 2]).mkdir(exist_ok=True)
        source = folder / "pictures" / f"{number}.png"
        (folder / CLASSES[number % 2] / f"{number}.png").write_bytes(source.read_bytes())
    assert dataset.class_names == CLASSES
    assert len(dataset.train) + len(dataset.test) == 12
    assert dataset.train.images.shape[1:] == (6, 6, 1)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_column_split_names_the_splits(folder, form):
    names = ["train"] * 6 + ["Val"] * 2 + ["testing"] * 4
    dataset = load(write(folder, form, split=names))
    assert {name: len(each) for name, each in dataset.splits.items()} == {
        "train": 6,
        "test": 4,
        "validation": 2,
    }
    assert "split 'later'" in message(write(folder, form, split=["later"] * 12))
    assert "no row is of the split train" in message(write(folder, form, split=["test"] * 12))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_other_names_are_set_by_the_columns(folder, form):
    values = rows()
    path = write(folder, form, shot=values["path"], path=["x"] * 12, kind=values["label"])
    dataset = load(path, image_column="shot", label_column="kind")
    assert len(dataset.train) + len(dataset.test) == 12
    assert "no column 'nope'" in message(path, image_column="shot", label_column="nope")


def test_integer_labels_are_sorted_by_value(folder):
    labels = [str(9 + number % 2) for number in range(12)]
    assert load(write(folder, "csv", label=labels)).class_names == ("9", "10")
    numbers = [9 + number % 2 for number in range(12)]
    assert load(write(folder, "parquet", label=numbers)).class_names == ("9", "10")


def test_absolute_paths_are_read(folder):
    paths = [str(folder / "pictures" / f"{number}.png") for number in range(12)]
    assert len(load(write(folder, "csv", path=paths)).train)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no column 'path' among none"),
        ("path,label\n", "contains no rows"),
        ("a,label\nx,1\n", "no column 'path' among a, label"),
        ("path,b\nx,1\n", "no column 'label'"),
        ("path,label\nx\n", "line 2: 1 values, expected 2"),
        ("path,label\n,1\n", "line 2: no 'path'"),
        ("path,label\npictures/0.png,\n", "line 2: no 'label'"),
        ("path,label\nmissing.png,1\n", "missing.png: no such file"),
        ("path,label\npictures,1\n", "pictures: a folder, not an ordinary file"),
        ("path,label\ntable.csv,1\n", "table.csv: not a readable picture"),
        ("path,path,label\na,b,1\n", "two columns are called 'path'"),
        ("path,label\n\0,1\n", "contains a null character"),
        ("path;label\na;1\n", "a single column 'path;label'; expected columns separated by commas"),
        ('path,label,note\npictures/0.png,1,"open\npictures/1.png,2,b\n', "close its quotes"),
        ("path,label\npictures/0.png, \n", "line 2: no 'label'"),
    ],
)
def test_bad_table_is_refused_on_one_line(folder, text, expected):
    (folder / "table.csv").write_text(text)
    found = message(folder / "table.csv")
    assert expected in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "written",
    ["{}", "{}.0", " {}", "{} ", "mixed"],
)
def test_numbers_are_classes_however_they_are_written(folder, written):
    forms = ["{}", "{}.0", " {}", "{}.00 "]
    texts = [
        (forms[number % 4] if written == "mixed" else written).format(number % 3)
        for number in range(12)
    ]
    dataset = load(write(folder, "csv", label=texts))
    plain = load(write(folder, "csv", label=[str(number % 3) for number in range(12)]))
    assert dataset.class_names == plain.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(dataset.train.labels, plain.train.labels)


def test_codes_with_leading_zeros_stay_texts(folder):
    labels = ["007", "7"] * 6
    assert set(load(write(folder, "csv", label=labels)).class_names) == {"007", "7"}


def test_blanks_after_the_commas_are_no_text(folder):
    path = folder / "table.csv"
    lines = [f'"pictures/{number}.png", "{CLASSES[number % 2]}"' for number in range(12)]
    path.write_text("\n".join(["path, label", *lines]))
    assert load(path).class_names == CLASSES


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_state_of_a_source_includes_the_pictures_it_names(folder, form):
    path = write(folder, form)
    states = [fingerprint_of_source(path)]
    assert fingerprint_of_source(path) == states[0]
    Image.new("L", (6, 6)).save(folder / "pictures" / "5.png")
    states.append(fingerprint_of_source(path))
    (folder / "pictures" / "6.png").unlink()
    states.append(fingerprint_of_source(path))
    assert len({*states}) == 3
    assert fingerprint_of_source(path, image_column="camera") not in states


def test_corrected_picture_of_a_day_makes_a_new_version(folder):
    day = date(2026, 11, 26)
    write(folder, "csv").rename(folder / f"{day}.csv")
    source = DatedSource(Store(folder / "store"), f"{folder}/{{date}}.csv")
    versions = []
    for hour in range(3):
        record, _ = source.ingest(None, day, datetime(2026, 11, 26, hour, tzinfo=UTC))
        versions += [each.version for each in record.newest(None, day)]
        Image.new("L", (6, 6)).save(folder / "pictures" / "5.png")  # the second time as it was
    assert versions == [1, 2, 2]


def test_table_that_is_not_text_is_refused(folder):
    (folder / "table.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    assert "not readable as a table in UTF-8" in message(folder / "table.csv")


def test_unreadable_pictures_are_skipped(folder):
    (folder / "pictures" / "0.png").write_bytes(b"broken")
    (folder / "pictures" / "1.png").unlink()
    path = write(folder, "csv")
    assert "0.png: not a readable picture" in message(path)
    dataset = load(path, max_errors=0.2)
    assert len(dataset.unreadable) == 2
    assert len(dataset.train) + len(dataset.test) == 10
    assert "2 of 12 pictures are unreadable" in message(path, max_errors=0.1)


def test_sizes_are_made_equal(folder):
    Image.new("RGB", (30, 9)).save(folder / "pictures" / "0.png")
    path = write(folder, "csv")
    assert "set dataset.image_size and dataset.channels" in message(path)
    settings = Preprocessing(image_size=(6, 6), channels=1)
    assert load(path, preprocessing=settings).train.images.shape[1:] == (6, 6, 1)
