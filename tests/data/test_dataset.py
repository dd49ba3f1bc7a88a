"""The held-out test split depends only on the images."""

from dataclasses import replace

import numpy as np
import pytest
from data_files import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.data import digits
from nnbuild.data.arrays import Raw, assemble
from nnbuild.data.checks import check
from nnbuild.data.dataset import TEST_FRACTION, Split, hold_out
from nnbuild.errors import DataError


def split(*, train=60, classes=4, seed=0) -> Split:
    arrays = tiny(train=train, classes=classes, seed=seed)
    return Split(arrays.train_images, arrays.train_labels.astype(np.int16))


def contents(part: Split) -> set[tuple[bytes, int]]:
    return {
        (image.tobytes(), int(label)) for image, label in zip(part.images, part.labels, strict=True)
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 90), min_size=1, max_size=5))
def test_held_out_image_stays_held_out(seed, nights):
    whole = split(train=90, seed=seed)
    order = np.random.default_rng(seed).permutation(90)
    earlier: set[tuple[bytes, int]] = set()
    trained: set[tuple[bytes, int]] = set()
    for count in sorted(nights):
        rows = order[:count]
        grown = Split(whole.images[rows], whole.labels[rows])
        train, test = map(contents, hold_out(grown))
        assert train | test == contents(grown)
        assert not train & test
        assert earlier <= test
        assert trained <= train
        earlier, trained = test, train


def test_hold_out_takes_expected_fraction():
    images = np.random.default_rng(0).integers(0, 256, (60_000, 3, 3, 1), np.uint8)
    whole = Split(images, np.zeros(60_000, np.int16))
    held_out = len(hold_out(whole)[1])
    assert abs(held_out - 10_000) < 5 * (60_000 * TEST_FRACTION * (1 - TEST_FRACTION)) ** 0.5
    smaller = contents(hold_out(whole, 0.01)[1])
    assert smaller < contents(hold_out(whole)[1])


def test_copies_of_image_stay_together():
    whole = split()
    doubled = Split(np.concatenate([whole.images] * 2), np.concatenate([whole.labels] * 2))
    train, test = hold_out(doubled)
    assert not contents(train) & contents(test)
    assert contents(test) == contents(hold_out(whole)[1])


def with_digests(below: int, above: int) -> np.ndarray:
    """Return images of which so many are held out, and so many are not."""
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4), np.uint8)
    train, test = hold_out(Split(images[..., None], np.zeros(200, np.int16)))
    return np.concatenate([test.images[:below, ..., 0], train.images[:above, ..., 0]])


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (with_digests(0, 9), [0, 1, 2] * 3, "none of its 9 different images is among that sixth"),
        (with_digests(2, 4), [2, 2, 0, 1, 0, 1], "all images of 2 are among the sixth"),
    ],
)
def test_hold_out_without_a_split_is_refused(images, labels, says):
    with pytest.raises(DataError, match=says) as caught:
        assemble(Raw(images, np.array(labels)), name="few", source="", where="few.npz")
    assert "\n" not in str(caught.value)


def test_class_without_test_image_is_noted():
    raw = Raw(with_digests(2, 8), np.array([0, 1, 0, 1, 0, 1, 0, 1, 2, 2]))
    held_out = assemble(raw, name="few", source="", where="few.npz")
    whole = replace(held_out, held_out=False)
    for dataset, hard in ((held_out, False), (whole, True)):
        (found,) = [each for each in check(dataset) if each.name == "classes_present"]
        assert (found.passed, found.hard, found.detail) == (False, hard, "2 in test")


def test_digests_identify_images():
    images = split(train=500).images
    labels = np.zeros(500, np.int16)
    digests = Split(images, labels).image_digests
    assert len(np.unique(digests)) == 500
    assert digests.itemsize == 16
    turned = Split(np.asfortranarray(images), labels).image_digests
    np.testing.assert_array_equal(digests, turned)


def test_digits_have_the_format_of_mnist():
    first, second = digits.load(), digits.load()
    assert first.digest == second.digest
    assert first.name == "digits"
    assert first.image_shape == (28, 28, 1)
    assert first.classes == 10
    assert (len(first.train), len(first.test)) == (1527, 270)
    assert not first.train.images[:, :2].any()  # MNIST's margin
    means = np.stack(
        [
            first.train.images[first.train.labels == label].mean(axis=0).ravel()
            for label in range(10)
        ]
    )
    nearest = ((first.test.images.reshape(-1, 1, 784) - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == first.test.labels).mean() > 0.85


@pytest.mark.parametrize("rows", [np.arange(40) % 3 == 0, np.array([5, 1, 1]), slice(3, 9)])
def test_selection_has_digests_of_its_images(rows):
    split = Split(tiny().train_images, tiny().train_labels.astype(np.int16))
    before = split.select(rows)
    assert len(split.image_digests) == len(split)
    np.testing.assert_array_equal(split.select(rows).image_digests, before.image_digests)
