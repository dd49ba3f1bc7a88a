"""Equal images give equal pixels, whatever their type, file format or split."""

import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import PARQUET_FORMS, Arrays, image_column, tiny, write_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from score_data import images, rows, scored

from nnbuild.config.sections import CheckLimits
from nnbuild.data import sources
from nnbuild.data.checks import check, require
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.formats import open_stream
from nnbuild.data.options import ReadOptions
from nnbuild.data.pixel_scale import white_of
from nnbuild.data.streams import RejectedRows, StreamOptions
from nnbuild.errors import CheckError, DataError
from nnbuild.scoring import job as jobs
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job_shards import score_input

SHAPE = (6, 6, 1)
KINDS = {
    "uint8": lambda pixels: pixels,
    "int32": lambda pixels: pixels.astype(np.int32),
    "unit": lambda pixels: pixels.astype(np.float32) / 255,
    "byte": lambda pixels: pixels.astype(np.float32),
    "half": lambda pixels: pixels.astype(np.float16) / np.float16(255),
}
IDX_CODES = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}


def number_column(values: np.ndarray, form: str) -> pa.Array:
    flat = values.reshape(len(values), int(np.prod(values.shape[1:])))
    kind = pa.from_numpy_dtype(values.dtype)
    if form == "tensor":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values[..., 0]))
    if form == "nested":
        return pa.array(
            [list(map(list, each)) for each in values[..., 0]], pa.list_(pa.list_(kind))
        )
    types = {
        "list": pa.list_(kind),
        "large_list": pa.large_list(kind),
        "fixed_size_list": pa.list_(kind, flat.shape[1]),
        "list_view": pa.list_view(kind),
    }
    return pa.array(list(flat), types[form])


NUMBERS = ("list", "large_list", "fixed_size_list", "nested", "tensor", "list_view")


def write_numbers(path, values, labels, form):
    table = pa.table({"image": number_column(values, form), "label": labels})
    pq.write_table(table, path, row_group_size=7)
    return path


def write_idx_file(path, values):
    array = values[..., 0] if values.ndim == 4 else values
    header = struct.pack(
        f">HBB{array.ndim}I", 0, IDX_CODES[array.dtype.name], array.ndim, *array.shape
    )
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def load(path, **options) -> Dataset:
    return sources.load(str(path), data_dir=None, cache=path, options=ReadOptions(**options))


def read(address, shape=SHAPE, **options) -> np.ndarray:
    source = open_stream(str(address), StreamOptions(shape, **options))
    found = [each for chunk in source.chunks() for each in source.read(chunk, 9)]
    assert not [each for each in found if isinstance(each, RejectedRows)]
    return np.concatenate([each.images for each in found])


def same(dataset: Dataset, arrays: Arrays) -> None:
    np.testing.assert_array_equal(dataset.train.images, arrays.train_images)
    np.testing.assert_array_equal(dataset.test.images, arrays.test_images)
    np.testing.assert_array_equal(dataset.validation.images, arrays.test_images[::-1])


@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("test", KINDS)
def test_npz_of_any_types_is_the_same(tmp_path, train, test):
    arrays = tiny()
    np.savez(
        tmp_path / "a.npz",
        x_train=KINDS[train](arrays.train_images),
        y_train=arrays.train_labels,
        x_test=KINDS[test](arrays.test_images),
        y_test=arrays.test_labels,
        x_val=KINDS[train](arrays.test_images[::-1]),
        y_val=arrays.test_labels[::-1],
    )
    dataset = load(tmp_path / "a.npz")
    same(dataset, arrays)
    np.testing.assert_array_equal(read(tmp_path / "a.npz"), arrays.test_images)
    unit = {"unit": "float32 from 0 to 1", "byte": "float32 from 0 to 255"}
    assert dataset.pixel_scales["test"] == unit.get(test, dataset.pixel_scales["test"])


@pytest.mark.parametrize("form", NUMBERS)
@pytest.mark.parametrize("kind", KINDS)
def test_parquet_of_any_format_is_equal(tmp_path, form, kind):
    arrays = tiny()
    if (form, kind) == ("list_view", "half"):
        pytest.skip("pyarrow has no such conversion")
    parts = {
        "train-0": (kind, arrays.train_images[:20], arrays.train_labels[:20]),
        "train-1": ("uint8", arrays.train_images[20:], arrays.train_labels[20:]),
        "test": (kind, arrays.test_images, arrays.test_labels),
        "valid": ("unit", arrays.test_images[::-1], arrays.test_labels[::-1]),
    }
    for name, (of, pixels, labels) in parts.items():
        write_numbers(tmp_path / f"{name}.parquet", KINDS[of](pixels), labels, form)
    same(load(tmp_path), arrays)
    np.testing.assert_array_equal(read(tmp_path / "test.parquet"), arrays.test_images)
    everything = [arrays.test_images, arrays.train_images, arrays.test_images[::-1]]
    np.testing.assert_array_equal(read(tmp_path), np.concatenate(everything))


@pytest.mark.parametrize("form", PARQUET_FORMS)
def test_parquet_is_scored_as_trained_on(tmp_path, form):
    arrays = tiny()
    table = pa.table(
        {"image": image_column(arrays.train_images, form), "label": arrays.train_labels}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(table.slice(0, 20), tmp_path / "test.parquet")
    np.testing.assert_array_equal(load(tmp_path).train.images, arrays.train_images)
    np.testing.assert_array_equal(read(tmp_path / "train.parquet"), arrays.train_images)


@pytest.mark.parametrize("train", ["uint8", "int32", "unit", "byte"])
def test_idx_of_any_type_is_the_same(tmp_path, train):
    arrays = tiny()
    for name, values in zip(("train", "test", "validation"), (0, 2, 2), strict=True):
        pixels = (arrays.train_images, arrays.test_images)[values // 2]
        labels = (arrays.train_labels, arrays.test_labels)[values // 2]
        turn = slice(None, None, -1 if name == "validation" else 1)
        write_idx_file(tmp_path / f"my-{name}-images-idx3-ubyte", KINDS[train](pixels[turn]))
        write_idx_file(tmp_path / f"my-{name}-labels-idx1-ubyte", labels[turn].astype(np.uint8))
    same(load(tmp_path), arrays)
    np.testing.assert_array_equal(read(tmp_path / "my-test-images-idx3-ubyte"), arrays.test_images)


def test_pictures_are_the_same(tmp_path):
    arrays = tiny()
    write_pictures(tmp_path / "train", arrays.train_images, arrays.train_labels)
    np.testing.assert_array_equal(
        read(tmp_path), arrays.train_images[np.argsort(arrays.train_labels, kind="stable")]
    )


BAD_ROWS = {
    "null": lambda _: None,
    "nan": lambda row: [float("nan"), *row[1:]],
    "inf": lambda row: [float("inf"), *row[1:]],
    "ragged": lambda row: row[:-1],
    "negative": lambda row: [-1.0, *row[1:]],
    "beyond": lambda row: [300.0, *row[1:]],
    "bright": lambda row: [200.0, *row[1:]],
}


@pytest.mark.parametrize("bad", BAD_ROWS)
@pytest.mark.parametrize("place", [0, 7, 229])
def test_bad_row_changes_no_other_row(store, tmp_path, bad, place):
    pixels = [row.ravel().tolist() for row in images().astype(np.float32) / 255]
    kind = pa.list_(pa.float32())
    pq.write_table(pa.table({"image": pa.array(pixels, kind)}), tmp_path / "good.parquet")
    pixels[place] = BAD_ROWS[bad](pixels[place])
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"image": pa.array(pixels, kind)}), path, row_group_size=60)
    good = rows(store, scored(store, input=tmp_path / "good.parquet"))
    done = scored(store, input=path, on_error="quarantine")
    assert (done.rows, done.quarantined) == (len(pixels) - 1, 1)
    kept = [row for row in range(len(pixels)) if row != place]
    assert rows(store, done) == good.take(kept)


def test_empty_first_part_changes_nothing(store, tmp_path):
    values = images().astype(np.float32) / 255
    folder = tmp_path / "in"
    folder.mkdir()
    write_numbers(folder / "a.parquet", values[:0], np.zeros(0, int), "fixed_size_list")
    write_numbers(folder / "b.parquet", values * 0, np.zeros(len(values), int), "fixed_size_list")
    write_numbers(folder / "c.parquet", values, np.zeros(len(values), int), "fixed_size_list")
    found = read(folder, (8, 8, 1))
    np.testing.assert_array_equal(found[len(values) :], images())
    assert not found[: len(values)].any()


@pytest.mark.parametrize("values", [np.full((4, 6, 6, 1), 1.5), np.full((9, 6, 6, 1), 16.0)])
def test_ambiguous_floats_need_pixel_max(tmp_path, store, values):
    values = values.astype(np.float32)
    labels = np.arange(len(values)) % 2
    np.savez(tmp_path / "a.npz", x_train=values, y_train=labels, x_test=values, y_test=labels)
    path = write_numbers(tmp_path / "a.parquet", values, labels, "list")
    for function in (load, lambda each: open_stream(str(each), StreamOptions(SHAPE)).scales()):
        for file in (tmp_path / "a.npz", path):
            with pytest.raises(DataError, match=r"ambiguous range.*pixel_max"):
                function(file)
    expected = np.rint(values * (255 / 16)).astype(np.uint8)
    np.testing.assert_array_equal(load(tmp_path / "a.npz", pixel_max=16).train.images, expected)
    np.testing.assert_array_equal(read(path, pixel_max=16), expected)
    np.testing.assert_array_equal(read(tmp_path / "a.npz", pixel_max=16), expected)
    assert int(read(path, pixel_max=255).max()) < 17


def test_ambiguous_floats_reject_no_row(store, tmp_path):
    values = np.full((30, 8, 8, 1), 2, np.float32)
    path = write_numbers(tmp_path / "a.parquet", values, np.zeros(30, int), "list")
    with pytest.raises(DataError, match="ambiguous range"):
        scored(store, input=path, on_error="quarantine")
    assert not list((store.root / "staging").glob("score-*"))


def test_sixteen_bits_need_pixel_max(tmp_path):
    values = tiny().train_images.astype(np.uint16) * 257
    labels = tiny().train_labels
    np.savez(tmp_path / "a.npz", x_train=values, y_train=labels, x_test=values, y_test=labels)
    with pytest.raises(DataError, match="65535"):
        load(tmp_path / "a.npz")
    dataset = load(tmp_path / "a.npz", pixel_max=65535)
    np.testing.assert_array_equal(dataset.train.images, tiny().train_images)
    assert dataset.pixel_scales["train"] == "uint16 from 0 to 65535"


@pytest.mark.parametrize("shift", [-1, -0.5])
def test_normalised_floats_are_refused(tmp_path, shift):
    values = tiny().train_images / 255 + shift
    labels = tiny().train_labels
    np.savez(tmp_path / "a.npz", x_train=values, y_train=labels, x_test=values, y_test=labels)
    with pytest.raises(DataError, match="undo any normalisation"):
        load(tmp_path / "a.npz")
    with pytest.raises(DataError, match="undo any normalisation"):
        read(tmp_path / "a.npz")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from(["unit", "byte"]))
def test_scale_is_found_for_any_images(seed, count, kind):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 1), np.uint8)
    pixels[::3] = 0  # black images are no evidence
    expected = 1 if kind == "unit" else 255
    assert not pixels.any() or white_of(KINDS[kind](pixels), "") == expected


def test_scale_is_recorded_and_recalled(store, tmp_path, monkeypatch):
    values = images().astype(np.float32)
    path = write_numbers(tmp_path / "a.parquet", values, np.zeros(len(values), int), "list")
    config = ScoreConfig(input=str(path), batch_size=32)
    job = jobs.open_job(config, store.root)
    from nnbuild.data import pixel_scale

    def looked(*_):
        raise AssertionError("the scale was looked for again")

    monkeypatch.setattr(pixel_scale, "white_of_floats", looked)
    resumed = jobs.resume_job(job.score_id, store.root)
    assert resumed.source.scales() == job.source.scales() == [255.0]
    assert score_input(resumed)


def brightness(train, test, **limits):
    splits = [Split(each, (np.arange(len(each)) % 2).astype(np.int16)) for each in (train, test)]
    results = check(Dataset("a", *splits, ("a", "b"), ""), CheckLimits(**limits))
    return {each.name: each for each in results}["brightness"], results


def test_splits_of_two_scales_are_refused():
    arrays = tiny(train=60, test=40, classes=2)
    dark = (arrays.test_images // 128).astype(np.uint8)
    found, results = brightness(arrays.train_images, dark)
    assert not found.passed
    with pytest.raises(CheckError, match=r"brightness is .* in train.* in test"):
        require(results)
    assert brightness(arrays.train_images, arrays.test_images // 4)[0].passed
    assert brightness(arrays.train_images, dark, max_brightness_ratio=1000)[0].passed


def test_input_of_another_scale_is_refused(store, tmp_path):
    dark = images() // 128
    np.savez(tmp_path / "a.npz", images=dark.astype(np.int64))
    with pytest.raises(DataError, match="mean brightness"):
        scored(store, input=tmp_path / "a.npz")
    assert scored(store, input=tmp_path / "a.npz", max_brightness_ratio=1000).rows == len(dark)
    np.savez(tmp_path / "few.npz", images=dark[:5])
    assert scored(store, input=tmp_path / "few.npz").rows == 5
