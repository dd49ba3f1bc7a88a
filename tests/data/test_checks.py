"""The data checks detect every injected problem, and nothing in valid data."""

import re

import numpy as np
import pytest
from data_files import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nnbuild.config.sections import CheckLimits
from nnbuild.data.checks import check, require
from nnbuild.data.dataset import Dataset, Split
from nnbuild.errors import CheckError


def dataset(*, classes=4, **changed) -> Dataset:
    arrays = tiny(train=200, test=100, classes=classes)
    given = dict(
        zip(("train_images", "train_labels", "test_images", "test_labels"), arrays, strict=True)
    )
    given["train_labels"] = given["train_labels"].astype(np.int16)
    given["test_labels"] = given["test_labels"].astype(np.int16)
    given |= changed
    train = Split(given["train_images"], given["train_labels"])
    test = Split(given["test_images"], given["test_labels"])
    return Dataset("tiny", train, test, tuple("abcdefgh"[:classes]), "")


def result(name, given, limits=None):
    return {found.name: found for found in check(given, limits)}[name]


def test_sound_data_pass_every_check():
    results = check(dataset())
    assert all(found.passed for found in results)
    require(results)
    assert [found.name for found in results] == [
        "counts",
        "image_shape",
        "dtype",
        "label_range",
        "classes_present",
        "constant_images_train",
        "constant_images_test",
        "train_duplicates",
        "test_images_in_train",
        "class_balance",
        "brightness",
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(0, 30), st.integers(0, 30))
def test_what_is_put_in_is_counted(constant, repeated, leaked):
    images, test_images = dataset().train.images.copy(), dataset().test.images.copy()
    images[:constant] = np.arange(constant)[:, np.newaxis, np.newaxis, np.newaxis]
    images[100 : 100 + repeated] = images[140 : 140 + repeated]
    test_images[:leaked] = images[170 : 170 + leaked]
    given = dataset(train_images=images, test_images=test_images)
    assert result("constant_images_train", given).measured == pytest.approx(constant / 200)
    assert result("constant_images_train", given).passed == (constant <= 2)
    assert f"{min(constant, 1)} of them all zero" in result("constant_images_train", given).detail
    assert result("train_duplicates", given).measured == pytest.approx(repeated / 200)
    assert result("test_images_in_train", given).measured == pytest.approx(leaked / 100)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("counts", {"train_labels": np.zeros(199, np.int16)}),
        (
            "counts",
            {"test_images": np.zeros((0, 6, 6, 1), np.uint8), "test_labels": np.zeros(0, np.int16)},
        ),
        ("image_shape", {"test_images": np.zeros((100, 6, 7, 1), np.uint8)}),
        ("image_shape", {"train_images": np.zeros((200, 6, 6), np.uint8)}),
        ("image_shape", {"train_images": np.zeros((200, 6, 6, 2), np.uint8)}),
        ("dtype", {"train_images": np.zeros((200, 6, 6, 1), np.float32)}),
        ("dtype", {"test_labels": np.zeros(100, np.int64)}),
        ("label_range", {"train_labels": np.full(200, 4, np.int16)}),
        ("label_range", {"train_labels": np.full(200, -1, np.int16)}),
        ("classes_present", {"test_labels": np.zeros(100, np.int16)}),
        ("constant_images_test", {"test_images": np.zeros((100, 6, 6, 1), np.uint8)}),
    ],
)
def test_failed_hard_check_names_its_values(name, changed):
    results = check(dataset(**changed))
    found = {found.name: found for found in results}[name]
    assert found.hard
    assert not found.passed
    with pytest.raises(CheckError) as caught:
        require(results)
    assert f"{name} is {found.measured}, expected {found.bound}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "hint"),
    [
        ({"test_labels": np.zeros(100, np.int16)}, "; fix the data"),
        ({"train_labels": np.full(200, 4, np.int16)}, "; fix the data"),
        (
            {"test_images": np.zeros((100, 6, 6, 1), np.uint8)},
            (
                "; fix the data or relax dataset.checks.max_constant_fraction and "
                "dataset.checks.max_brightness_ratio"
            ),
        ),
        (  # relaxing one of the two would not be enough
            {
                "test_images": np.zeros((100, 6, 6, 1), np.uint8),
                "test_labels": np.zeros(100, np.int16),
            },
            "; fix the data",
        ),
    ],
)
def test_hint_names_the_settings_that_would_help(changed, hint):
    with pytest.raises(CheckError) as caught:
        require(check(dataset(**changed)))
    assert str(caught.value).endswith(hint)


def test_every_limit_relaxes_its_checks():
    images = np.concatenate([np.zeros((20, 6, 6, 1), np.uint8), dataset().train.images[20:]])
    labels = np.r_[np.zeros(194, np.int16), 0, 0, 0, 1, 2, 3].astype(np.int16)
    given = dataset(
        train_images=images,
        train_labels=labels,
        test_images=np.zeros((100, 6, 6, 1), np.uint8),
    )
    with pytest.raises(CheckError) as caught:
        require(check(given, CheckLimits(strict=True)))
    names = re.findall(r"dataset\.checks\.(\w+)", str(caught.value))
    assert set(names) == set(CheckLimits.model_fields) - {"strict"}
    relaxed = {name: 1 if name.endswith("_fraction") else 10_000 for name in names}
    require(check(given, CheckLimits(strict=True, **relaxed)))


def test_absent_classes_are_named():
    found = result("classes_present", dataset(classes=8, test_labels=np.zeros(100, np.int16)))
    assert found.measured == "7 absent"
    assert found.detail == "b in test, c in test, d in test, e in test, f in test and 2 more"


def test_duplicates_stop_only_if_strict():
    images = dataset().train.images.copy()
    images[:] = images[:1]
    labels = np.zeros(200, np.int16)
    labels[:3] = (1, 2, 3)
    given = dataset(train_images=images, train_labels=labels, test_images=images[:100])
    names = {"train_duplicates", "test_images_in_train", "class_balance"}
    assert {found.name for found in check(given) if not found.passed} == names
    require(check(given))
    with pytest.raises(
        CheckError,
        match=r"train_duplicates is 0.995.*test_images_in_train is 1.0.*class_balance is 197",
    ):
        require(check(given, CheckLimits(strict=True)))


def test_the_bounds_can_be_set():
    images = dataset().train.images.copy()
    images[:20] = 7
    given = dataset(train_images=images)
    assert not result("constant_images_train", given).passed
    assert result("constant_images_train", given, CheckLimits(max_constant_fraction=0.1)).passed


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_constant_fraction": 1.1},
        {"max_class_imbalance": 0.5},
        {"unknown": 1},
        {"max_leakage_fraction": "x"},
    ],
)
def test_limits_have_limits(wrong):
    with pytest.raises(ValidationError):
        CheckLimits(**wrong)


def test_limits_are_described():
    assert all(field.description for field in CheckLimits.model_fields.values())
