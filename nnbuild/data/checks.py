"""Check a dataset for problems before the training starts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from nnbuild.config.sections import CheckLimits
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.pixels import chunks
from nnbuild.errors import CheckError

_MAX_NAMED = 5
_IMAGE_DIMENSIONS = 4
_CHANNELS = (1, 3)
_LIMIT_OF = {
    "constant_images_train": "max_constant_fraction",
    "constant_images_test": "max_constant_fraction",
    "constant_images_validation": "max_constant_fraction",
    "train_duplicates": "max_duplicate_fraction",
    "test_images_in_train": "max_leakage_fraction",
    "validation_images_in_train": "max_leakage_fraction",
    "class_balance": "max_class_imbalance",
    "brightness": "max_brightness_ratio",
}
"""Field of `CheckLimits` with the bound of a check; other checks have a fixed one."""
_DARK = 0.1  # of 255; avoids a division by 0 if all images are black


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        name: Name of the check, in lower-case letters and underscores.
        passed: Whether the data meet the bound.
        hard: Whether a failure stops the run.
        measured: Measured value.
        bound: Expected value, as text for a table.
        detail: Counts behind the value; may be empty.
    """

    name: str
    passed: bool
    hard: bool
    measured: str | int | float
    bound: str
    detail: str = ""


def check(dataset: Dataset, limits: CheckLimits | None = None) -> tuple[CheckResult, ...]:
    """Run all checks; those of the content only if the arrays have valid shapes and types.

    Args:
        dataset: Dataset to check.
        limits: Limits of the checks; `CheckLimits()` by default.

    Returns:
        The result of each check, always in the same order.
    """
    limits = CheckLimits() if limits is None else limits
    formal = tuple(_check_form(dataset))
    if not all(result.passed for result in formal):
        return formal
    return formal + tuple(_check_content(dataset, limits))


def unreadable(count: int, examples: Sequence[str], limit: float) -> CheckResult:
    """Report the pictures that were skipped as unreadable; reading refuses more than `limit`.

    Args:
        count: Number of skipped pictures.
        examples: Messages about the first of them.
        limit: Largest fraction of pictures to skip.
    """
    more = count - len(examples)
    return CheckResult(
        "unreadable_pictures",
        passed=True,
        hard=True,
        measured=count,
        bound=f"at most {limit:g} of all pictures",
        detail="; ".join(examples) + (f"; and {more} more" if more > 0 else ""),
    )


def require(results: Sequence[CheckResult]) -> None:
    """Refuse data that failed a hard check.

    Raises:
        CheckError: A hard check failed; the message names each one with its values.
    """
    failed = [result for result in results if result.hard and not result.passed]
    if failed:
        reasons = "; ".join(
            f"{result.name} is {result.measured}, expected {result.bound}"
            + (f" ({result.detail})" * bool(result.detail))
            for result in failed
        )
        raise CheckError(f"data checks failed: {reasons}; fix the data{_settings_of(failed)}")


def _settings_of(failed: Sequence[CheckResult]) -> str:
    """Name the settings that can be relaxed; none if that would not be enough."""
    if not all(result.name in _LIMIT_OF for result in failed):
        return ""
    names = dict.fromkeys(f"dataset.checks.{_LIMIT_OF[result.name]}" for result in failed)
    return f" or relax {' and '.join(names)}"


def _check_form(dataset: Dataset) -> Iterator[CheckResult]:
    splits = tuple(dataset.splits.values())
    counts = [(len(split.images), len(split.labels)) for split in splits]
    agree = all(images == labels and images for images, labels in counts)
    shown = ", ".join(f"{images} images and {labels} labels" for images, labels in counts)
    yield CheckResult(
        "counts",
        passed=agree,
        hard=True,
        measured=shown,
        bound="equal numbers above 0 in every split",
    )
    shapes = [split.images.shape[1:] for split in splits]
    valid = (
        len(set(shapes)) == 1
        and len(shapes[0]) == _IMAGE_DIMENSIONS - 1
        and shapes[0][2] in _CHANNELS
    )
    yield CheckResult(
        "image_shape",
        passed=valid,
        hard=True,
        measured=_distinct(shapes),
        bound="one (height, width, 1 or 3)",
    )
    kinds = [f"{split.images.dtype} images, {split.labels.dtype} labels" for split in splits]
    expected = "uint8 images, int16 labels"
    yield CheckResult(
        "dtype",
        passed=set(kinds) == {expected},
        hard=True,
        measured=_distinct(kinds),
        bound=expected,
    )
    labels = np.concatenate([split.labels.ravel() for split in splits])
    low, high = (labels.min(), labels.max()) if len(labels) else (0, 0)
    inside = bool(low >= 0 and high < dataset.classes)
    yield CheckResult(
        "label_range",
        passed=inside,
        hard=True,
        measured=f"{low} to {high}",
        bound=f"0 to {dataset.classes - 1}",
    )


def _distinct(values: Sequence[object]) -> str:
    """Join the distinct values of the splits."""
    return " and ".join(dict.fromkeys(str(value) for value in values))


def _check_content(dataset: Dataset, limits: CheckLimits) -> Iterator[CheckResult]:
    train, test = dataset.train, dataset.test
    counts = [np.bincount(split.labels, minlength=dataset.classes) for split in (train, test)]
    absent = [
        f"{dataset.class_names[label]} in {subset}"
        for subset, count in zip(("train", "test"), counts, strict=True)
        for label in np.flatnonzero(count == 0)
    ]
    yield CheckResult(
        "classes_present",
        passed=not absent,
        # A class with few images may have none in a test split that is held out by content.
        hard=not dataset.held_out or bool((counts[0] == 0).any()),
        measured=f"{len(absent)} absent",
        bound="0 absent",
        detail=_first_names(absent),
    )
    scans = {subset: _scan(split) for subset, split in dataset.splits.items()}
    for subset, scan in scans.items():
        yield _constant(f"constant_images_{subset}", scan, limits)
    digests = train.image_digests, test.image_digests
    repeated = len(train) - len(np.unique(digests[0]))
    yield _share(
        "train_duplicates", repeated, len(train), limits.max_duplicate_fraction, hard=limits.strict
    )
    leaked = int(np.isin(digests[1], digests[0]).sum())
    yield _share(
        "test_images_in_train", leaked, len(test), limits.max_leakage_fraction, hard=limits.strict
    )
    if (validation := dataset.validation) is not None:
        seen = int(np.isin(validation.image_digests, digests[0]).sum())
        yield _share(
            "validation_images_in_train",
            seen,
            len(validation),
            limits.max_leakage_fraction,
            hard=limits.strict,
        )
    smallest, largest = int(counts[0].min()), int(counts[0].max())
    ratio = largest / max(smallest, 1)
    yield CheckResult(
        "class_balance",
        passed=ratio <= limits.max_class_imbalance,
        hard=limits.strict,
        measured=round(ratio, 4),
        bound=f"at most {limits.max_class_imbalance:g} times",
        detail=f"{smallest} to {largest} training images in a class",
    )
    yield _brightness(scans, limits)


class _Scan(NamedTuple):
    """What one pass over the pixels of a split finds.

    Attributes:
        images: Number of images.
        constant: Number of images of a single colour.
        zero: Number of images that are all zero.
        mean: Mean of all pixels.
    """

    images: int
    constant: int
    zero: int
    mean: float


def _scan(split: Split) -> _Scan:
    """Pass over the pixels of a split, a chunk at a time: they may be in a file."""
    constant = zero = total = 0
    for chunk in chunks(split.images):
        rows = np.asarray(split.images[chunk]).reshape(chunk.stop - chunk.start, -1)
        highest = rows.max(axis=1)
        is_constant = highest == rows.min(axis=1)
        constant += int(is_constant.sum())
        zero += int((is_constant & (highest == 0)).sum())
        total += int(rows.sum(dtype=np.uint64))
    return _Scan(len(split), constant, zero, total / split.images.size)


def _brightness(scans: Mapping[str, _Scan], limits: CheckLimits) -> CheckResult:
    """Compare the mean pixels of the splits; only different scales explain a large factor."""
    means = {subset: scan.mean for subset, scan in scans.items()}
    ratio = (max(means.values()) + _DARK) / (min(means.values()) + _DARK)
    shown = ", ".join(f"{mean:.2f} in {subset}" for subset, mean in means.items())
    return CheckResult(
        "brightness",
        passed=ratio <= limits.max_brightness_ratio,
        hard=True,
        measured=round(ratio, 2),
        bound=f"at most {limits.max_brightness_ratio:g} times",
        detail=f"mean pixels of 0 to 255: {shown}; use one scale for all splits",
    )


def _first_names(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _constant(name: str, scan: _Scan, limits: CheckLimits) -> CheckResult:
    result = _share(name, scan.constant, scan.images, limits.max_constant_fraction, hard=True)
    return replace(result, detail=f"{result.detail}, {scan.zero} of them all zero")


def _share(name: str, count: int, total: int, limit: float, *, hard: bool) -> CheckResult:
    share = count / total
    return CheckResult(
        name,
        passed=share <= limit,
        hard=hard,
        measured=round(share, 6),
        bound=f"at most {limit:g}",
        detail=f"{count} of {total} images",
    )
