"""Parquet files: every usual format of an image column, and errors for the others."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import PARQUET_FORMS, image_column, png, tiny, write_parquet, write_parquet_folder

from nnbuild.data import parquet
from nnbuild.errors import DataError


def refused(table_or_path, tmp_path=None, loader=parquet.load_file, **options) -> str:
    path = table_or_path
    if isinstance(table_or_path, pa.Table):
        path = tmp_path / "a.parquet"
        pq.write_table(table_or_path, path, **options)
    with pytest.raises(DataError) as caught:
        loader(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(images, labels=None):
    labels = [row % 2 for row in range(len(images))] if labels is None else labels
    return pa.table({"image": images, "label": labels})


@pytest.mark.parametrize("form", PARQUET_FORMS)
@pytest.mark.parametrize(
    "options", [{}, {"row_group_size": 7}, {"compression": "zstd", "use_dictionary": False}]
)
def test_row_groups_do_not_matter(tmp_path, form, options):
    arrays = tiny()
    dataset = parquet.load_folder(write_parquet_folder(tmp_path, arrays, form, **options))
    np.testing.assert_array_equal(dataset.train.images, arrays.train_images)
    np.testing.assert_array_equal(dataset.test.images, arrays.test_images)
    np.testing.assert_array_equal(dataset.train.labels, arrays.train_labels)


def test_files_are_read_in_name_order(tmp_path):
    arrays = tiny()
    for part, rows in enumerate((slice(0, 15), slice(15, 40))):
        path = tmp_path / f"train-{part:05}-of-00002.parquet"
        write_parquet(path, arrays.train_images[rows], arrays.train_labels[rows], "hugging_face")
    write_parquet(
        tmp_path / "test-00000-of-00001.parquet",
        arrays.test_images,
        arrays.test_labels,
        "hugging_face",
    )
    np.testing.assert_array_equal(parquet.load_folder(tmp_path).train.images, arrays.train_images)


def test_floats_in_lists_are_scaled(tmp_path):
    arrays = tiny()
    images = pa.array((arrays.train_images.reshape(40, -1) / 255).tolist(), pa.list_(pa.float32()))
    pq.write_table(table(images, arrays.train_labels), tmp_path / "a.parquet")
    dataset = parquet.load_file(tmp_path / "a.parquet")
    pixels = np.concatenate([dataset.train.images, dataset.test.images])
    assert {image.tobytes() for image in pixels} == {
        image.tobytes() for image in arrays.train_images
    }


def test_hugging_face_class_names_are_kept(tmp_path):
    names = ("cat", "dog", "emu", "fox", "gnu")
    dataset = parquet.load_folder(
        write_parquet_folder(tmp_path, tiny(), "hugging_face", names=names)
    )
    assert dataset.class_names == names
    assert "label 3 with 2 classes" in refused(
        write_parquet_folder(tmp_path / "few", tiny(), names=names[:2]), loader=parquet.load_folder
    )


@pytest.mark.parametrize(
    "text",
    ["null", "[]", "{}", "{", '{"info": {"features": {"label": {"names": [1]}}}}', "[" * 9999],
)
def test_other_metadata_are_ignored(tmp_path, text):
    images = image_column(tiny().train_images, "fixed_size_binary")
    given = table(images).replace_schema_metadata({"huggingface": text})
    pq.write_table(given, tmp_path / "a.parquet")
    assert parquet.load_file(tmp_path / "a.parquet").class_names == ("0", "1")


def test_missing_column_is_named(tmp_path):
    assert "no column 'image' among pixels, label" in refused(
        pa.table({"pixels": [1], "label": [1]}), tmp_path
    )
    assert "no column 'label' among image" in refused(pa.table({"image": [b"1"]}), tmp_path)


@pytest.mark.parametrize("form", PARQUET_FORMS)
def test_nulls_are_refused_with_rows(tmp_path, form):
    images = image_column(tiny().train_images, form)
    rows = pa.array([row if row not in (8, 23) else None for row in range(40)])
    if form == "tensor":
        images = pa.ExtensionArray.from_storage(images.type, images.storage.take(rows))
    else:
        images = images.take(rows)
    message = refused(table(images), tmp_path, row_group_size=20)
    assert "1 null(s) in column 'image', rows 8" in message
    labels = pa.array([None if row == 33 else row % 2 for row in range(40)])
    whole = image_column(tiny().train_images, form)
    assert "1 null(s) in column 'label', rows 33" in refused(
        table(whole, labels), tmp_path, row_group_size=20
    )


def test_nulls_inside_are_refused(tmp_path):
    assert "nulls inside" in refused(table(pa.array([[1, 2, 3, None]] * 2)), tmp_path)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "/etc/passwd"}] * 2, kind)
    assert "null(s) in column 'image.bytes', rows 0, 1" in refused(table(images), tmp_path)


def test_ragged_lists_are_refused(tmp_path):
    assert "different lengths" in refused(table(pa.array([[1] * 4, [1] * 9])), tmp_path)
    assert "different lengths" in refused(table(pa.array([[[1, 1], [1]], [[1], [1, 1]]])), tmp_path)
    images = [png(np.zeros((4, 4, 1), np.uint8)), png(np.zeros((4, 5, 1), np.uint8))]
    assert "row 1: height, width, channels (4, 5, 1)" in refused(table(images), tmp_path)
    assert "expected one" in refused(
        table(pa.array([[1] * 4] * 4 + [[1] * 9] * 4)), tmp_path, row_group_size=4
    )


def test_pixels_without_shape_are_a_square(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 5, 7, 1), np.uint8)
    labels = np.arange(60) % 2
    assert "not a square" in refused(write_parquet(tmp_path / "a.parquet", images, labels))
    assert "not a square" in refused(write_parquet(tmp_path / "a.parquet", images, labels, "list"))
    for shape in ((5, 7, 1), (7, 5, 1)):
        path = write_parquet(tmp_path / "a.parquet", images, labels, shape=shape)
        assert parquet.load_file(path).image_shape == shape
    for shape in ((5, 8, 1), (0, 7, 5), (-5, -7, 1), ("5", "x", "1"), (10**9, 7, 1)):
        assert "expected" in refused(
            write_parquet(tmp_path / "a.parquet", images, labels, shape=shape)
        )


@pytest.mark.parametrize(
    "column",
    [
        [1, 2],
        ["a", "b"],
        [["a"], ["b"]],
        [{"path": "a"}, {"path": "b"}],
        [True, False],
        [[[]], [[]]],
        [[], []],
    ],
)
def test_columns_without_images_are_refused(tmp_path, column):
    assert "expected" in refused(table(column), tmp_path)


@pytest.mark.parametrize(
    "labels", [["a", "b"], [0.0, 1.0], [[0], [1]], [None, None], [0, -1], [0, 5000]]
)
def test_invalid_labels_are_refused(tmp_path, labels):
    images = image_column(tiny(train=2).train_images, "fixed_size_binary")
    assert "expected" in refused(table(images, labels), tmp_path)


def test_bad_picture_is_refused_with_its_row(tmp_path):
    good = png(np.zeros((4, 4, 1), np.uint8))
    assert "row 1: not a readable picture" in refused(table([good, good[:-20]]), tmp_path)
    assert "row 0: not a readable picture" in refused(table([b"", good]), tmp_path)


def test_permuted_tensors_are_refused(tmp_path):
    storage = pa.array([[0] * 12] * 4, pa.list_(pa.uint8(), 12))
    kind = pa.fixed_shape_tensor(pa.uint8(), (3, 2, 2), permutation=(1, 2, 0))
    assert "permutation" in refused(table(pa.ExtensionArray.from_storage(kind, storage)), tmp_path)


def test_no_training_rows_are_refused(tmp_path):
    assert "contains no rows" in refused(
        table(pa.array([], pa.binary(4)), pa.array([], pa.int64())), tmp_path
    )
    (tmp_path / "a.parquet").rename(tmp_path / "test.parquet")
    assert "no train*.parquet" in refused(tmp_path, loader=parquet.load_folder)


def test_too_few_images_are_refused(tmp_path):
    images = image_column(tiny(train=2).train_images, "fixed_size_binary")
    assert "none of its 2 different images" in refused(table(images), tmp_path)


@pytest.mark.parametrize(
    "form", ["fixed_size_binary", "list", "fixed_size_list", "png", "hugging_face"]
)
def test_bomb_is_refused_before_unpacking(tmp_path, form):
    count = 3000 if form in {"png", "hugging_face"} else 300
    side = 800 if form in {"png", "hugging_face"} else 600
    images = image_column(np.zeros((1, side, side, 1), np.uint8), form)
    many = pa.chunked_array([images] * count)
    path = tmp_path / "a.parquet"
    pq.write_table(table(many, np.arange(count) % 2), path, compression="zstd")
    del many, images
    assert path.stat().st_size < 1 << 20
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    try:
        assert "bomb" in refused(path)
    finally:
        pa.set_memory_pool(usual)
    assert counting.max_memory() < 4 << 20


def test_shape_of_stored_table_is_used(tmp_path):
    images = tiny(shape=(4, 6, 3)).train_images
    path = write_parquet(tmp_path / "a.parquet", images, np.arange(40) % 2, shape=(4, 6, 3))
    assert parquet.load_file(path).image_shape == (4, 6, 3)


def test_metadata_of_many_files_is_checked(tmp_path):
    """More paths than fit into a command line."""
    names = [tmp_path / f"{number:06}{'x' * 150}.parquet" for number in range(14_000)]
    names[0].write_bytes(b"PAR1")
    parquet.require_readable_metadata(names)
