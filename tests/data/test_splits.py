"""The held-out test split depends only on the images."""

import numpy as np
from data_files import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.data import digits
from nnbuild.data.dataset import Split
from nnbuild.data.splits import hold_out, image_digests


def split(*, train=60, classes=4, seed=0) -> Split:
    arrays = tiny(train=train, classes=classes, seed=seed)
    return Split(arrays.train_images, arrays.train_labels.astype(np.int16))


def contents(part: Split) -> set[tuple[bytes, int]]:
    return {
        (image.tobytes(), int(label)) for image, label in zip(part.images, part.labels, strict=True)
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 7), st.integers(20, 90))
def test_hold_out_is_stratified(seed, classes, count):
    whole = split(train=count, classes=classes, seed=seed)
    train, test = hold_out(whole)
    assert contents(train) | contents(test) == contents(whole)
    assert not contents(train) & contents(test)
    for label in range(classes):
        members = int((whole.labels == label).sum())
        assert int((test.labels == label).sum()) == max(1, round(members / 6))
    order = np.random.default_rng(seed).permutation(count)
    assert contents(hold_out(Split(whole.images[order], whole.labels[order]))[1]) == contents(test)


def test_copies_of_image_stay_together():
    whole = split()
    doubled = Split(np.concatenate([whole.images] * 2), np.concatenate([whole.labels] * 2))
    train, test = hold_out(doubled)
    assert not contents(train) & contents(test)
    assert contents(test) == contents(hold_out(whole)[1])


def test_single_image_is_for_training():
    train, test = hold_out(
        Split(np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1), np.array([0, 0, 1], np.int16))
    )
    assert sorted(train.labels.tolist()) == [0, 1]
    assert test.labels.tolist() == [0]


def test_digests_identify_images():
    images = split(train=500).images
    assert len(np.unique(image_digests(images))) == 500
    np.testing.assert_array_equal(image_digests(images), image_digests(np.asfortranarray(images)))


def test_digits_have_the_format_of_mnist():
    first, second = digits.load(), digits.load()
    assert first.digest == second.digest
    assert first.name == "digits"
    assert first.image_shape == (28, 28, 1)
    assert first.classes == 10
    assert (len(first.train), len(first.test)) == (1498, 299)
    assert not first.train.images[:, :2].any()  # MNIST's margin
    means = np.stack(
        [
            first.train.images[first.train.labels == label].mean(axis=0).ravel()
            for label in range(10)
        ]
    )
    nearest = ((first.test.images.reshape(-1, 1, 784) - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == first.test.labels).mean() > 0.85
