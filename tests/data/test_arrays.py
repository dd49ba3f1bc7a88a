"""Arrays of every usual format become uint8 pixels and labels from 0, or are refused."""

import numpy as np
import pytest
from data_files import tiny

from nnbuild.data import labels, pixel_scale
from nnbuild.data.arrays import Raw, as_pixels, assemble
from nnbuild.data.labels import MAX_CLASSES
from nnbuild.data.preprocessing import Preprocessing
from nnbuild.errors import DataError


def made(class_names=None, preprocessing=None, pixel_max=None, **changed):
    arrays = tiny()
    raw = Raw(*arrays)._replace(**changed)
    return assemble(
        raw,
        name="a",
        source="here",
        where="a.npz",
        class_names=class_names,
        preprocessing=preprocessing,
        pixel_max=pixel_max,
    )


def refused(class_names=None, **changed) -> str:
    with pytest.raises(DataError) as caught:
        made(class_names, **changed)
    assert str(caught.value).startswith("a.npz: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64]
)
def test_integers_are_taken_as_they_are(kind):
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (pixels,) = as_pixels((images.astype(kind),), "")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[..., 0], images)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_of_both_ranges_agree(kind):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for floats in (images.astype(kind), (images / 255).astype(kind)):
        (pixels,) = as_pixels((floats,), "")
        np.testing.assert_array_equal(pixels[..., 0], images)


def test_each_array_is_scaled_by_itself():
    bright, unit = np.full((1, 2, 2), 200.0), np.full((1, 2, 2), 1.0)
    assert [int(pixels.max()) for pixels in as_pixels((bright, unit), "")] == [200, 255]
    assert [int(pixels.max()) for pixels in as_pixels((unit.astype(int), unit), "")] == [1, 255]


def test_pixels_of_many_rows_are_equal():
    floats = np.random.default_rng(0).random((9000, 2, 2))
    (pixels,) = as_pixels((floats,), "")
    np.testing.assert_array_equal(pixels[..., 0], np.rint(floats * 255))


@pytest.mark.parametrize("value", [-0.001, 255.5, 1e30, np.inf, -np.inf])
def test_floats_out_of_range_are_refused(value):
    images = np.full((40, 6, 6), 0.5)
    images[7, 2, 3] = value
    assert "expected [0, 255], or [0, 1] in floats" in refused(train_images=images)


@pytest.mark.parametrize("pixel_max", [None, 1, 7])
def test_image_with_nan_is_named(monkeypatch, pixel_max):
    monkeypatch.setattr(pixel_scale, "_BATCH_BYTES", 1000)  # three images
    images = np.full((40, 6, 6), 0.5)
    images[[17, 30], 2, 3] = np.nan
    with pytest.raises(DataError) as caught:
        made(train_images=images, pixel_max=pixel_max)
    assert str(caught.value).startswith(
        "a.npz, train images: image 17 (counted from 0) contains NaN; expected [0, "
    )
    with pytest.raises(DataError, match=r"pixels are NaN; expected \[0, 255\]"):
        pixel_scale.to_uint8(images, 255, "a part of a file")


@pytest.mark.parametrize("value", [-1, 256, 65535])
def test_integers_out_of_range_are_refused(value):
    images = np.zeros((40, 6, 6), np.int32)
    images[0, 0, 0] = value
    assert str(value) in refused(train_images=images)


@pytest.mark.parametrize(
    "shape",
    [
        (40,),
        (40, 6),
        (40, 6, 6, 2),
        (40, 6, 6, 4),
        (40, 6, 6, 1, 1),
        (0, 6, 6),
        (40, 0, 6),
        (40, 6, 6, 0),
    ],
)
def test_invalid_shapes_are_refused(shape):
    assert str(shape) in refused(train_images=np.zeros(shape, np.uint8))


def test_non_numeric_values_are_refused():
    assert "complex" in refused(train_images=np.zeros((40, 6, 6), complex))
    assert "bool" in refused(train_images=np.zeros((40, 6, 6), bool))


@pytest.mark.parametrize("shape", [(14, 9), (12, 10, 3), (14, 9, 3)])
def test_splits_of_two_sizes_are_fitted(shape):
    images = np.zeros((5, *shape), np.uint8)
    settings = Preprocessing(image_size=(6, 8), channels=3)
    dataset = made(test_images=images, test_labels=np.arange(5) % 2, preprocessing=settings)
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == (6, 8, 3)


def test_splits_of_two_sizes_are_refused():
    message = refused(train_images=tiny().train_images[:-1])
    assert "39 training images, 40 labels" in message
    assert "(6, 6, 1) and test images of (6, 7, 1)" in refused(
        test_images=np.zeros((20, 6, 7), np.uint8)
    )
    assert "(6, 6, 1) and test images of (6, 6, 3)" in refused(
        test_images=np.zeros((20, 6, 6, 3), np.uint8)
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.full(40, 0.5),
        np.full(40, np.nan),
        np.full(40, np.inf),
        np.zeros((40, 2), int),
        np.ones((40, 2), int),
        np.zeros((40, 2, 2), int),
        np.zeros(0, int),
        np.array(3),
        np.zeros(40, complex),
        np.zeros(40, "M8[s]"),
    ],
)
def test_unknown_label_formats_are_refused(labels):
    assert "expected" in refused(train_labels=labels)


@pytest.mark.parametrize("value", [-2, -(2**40)])
def test_labels_below_none_are_refused(value):
    labels = tiny().train_labels.copy()
    labels[3] = value
    assert str(value) in refused(train_labels=labels)


@pytest.mark.parametrize("kind", [object, str])
def test_unlabelled_as_text_is_no_class(kind):
    texts = labels.encode([np.array(["1", "-1", "2", "-1"], dtype=kind)], "x")
    numbers = labels.encode([np.array([1, -1, 2, -1])], "x")
    assert texts.class_names == numbers.class_names == ("1", "2")
    np.testing.assert_array_equal(texts.splits[0], numbers.splits[0])


def test_too_many_classes_are_refused():
    labels = np.arange(MAX_CLASSES + 1)
    images = np.zeros((len(labels), 2, 2), np.uint8)
    given = dict.fromkeys(("train_images", "test_images"), images)
    given |= dict.fromkeys(("train_labels", "test_labels"), labels)
    assert "expected 2 to 1000" in refused(**given)


def test_class_of_one_split_is_left_to_checks():
    assert made(test_labels=tiny().test_labels % 2).classes == 4


def test_number_of_classes_has_bounds():
    zero = {"train_labels": np.zeros(40, int), "test_labels": np.zeros(20, int)}
    assert "1 class(es); expected 2 to 1000" in refused(**zero)
    assert "same name" in refused(("a", "b", "c", "a"))
    assert "label 3 with 3 classes" in refused(("a", "b", "c"))
    assert "printable characters" in refused(("a", "b", "c", "d\n"))
    assert "printable characters" in refused(("a", "b", "c", "\udcff"))
    assert made(("a", "b", "c", "d", "e")).classes == 5


def test_a_thousand_classes_are_read():
    labels = np.arange(1000)
    images = np.zeros((1000, 2, 2), np.uint8)
    assert (
        made(
            train_images=images, train_labels=labels, test_images=images, test_labels=labels
        ).classes
        == 1000
    )
