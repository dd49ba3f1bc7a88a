"""Is the data fit to train on? Counts what is wrong with it before a second is spent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnbuild.config.sections import CheckLimits
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.splits import image_digests
from nnbuild.errors import CheckError

_MOST_NAMED = 5
_IMAGE_DIMENSIONS = 4
_CHANNELS = (1, 3)
_DARK = 0.1  # of 255: keeps images that are all black from dividing by 0


@dataclass(frozen=True)
class CheckResult:
    """One check.

    Attributes:
        name: lower-case letters and underscores.
        passed: whether the data keep the bound.
        hard: whether a violation stops the run.
        measured: the number, or what was found.
        bound: what was expected, as it reads in a table.
        detail: the counts behind it; empty if there is nothing to add.
    """

    name: str
    passed: bool
    hard: bool
    measured: str | int | float
    bound: str
    detail: str = ""


def check(dataset: Dataset, limits: CheckLimits | None = None) -> tuple[CheckResult, ...]:
    """Run every check; those on the content only if the arrays have the right form.

    Args:
        dataset: what to look at.
        limits: the bounds; by default `CheckLimits()`.

    Returns:
        One result for each check, always in the same order.
    """
    limits = CheckLimits() if limits is None else limits
    form = tuple(_form(dataset))
    if not all(result.passed for result in form):
        return form
    return form + tuple(_content(dataset, limits))


def require(results: Sequence[CheckResult]) -> None:
    """Stop if a hard check is violated.

    Raises:
        CheckError: names every violated hard check with its numbers, on one line.
    """
    violated = [result for result in results if result.hard and not result.passed]
    if violated:
        numbers = "; ".join(
            f"{result.name} is {result.measured}, expected {result.bound}"
            + (f" ({result.detail})" * bool(result.detail))
            for result in violated
        )
        raise CheckError(
            f"the data are not fit to train on: {numbers}; mend the data, or the limits of the checks"
        )


def _form(dataset: Dataset) -> Iterator[CheckResult]:
    splits = tuple(dataset.splits.values())
    counts = [(len(split.images), len(split.labels)) for split in splits]
    agree = all(images == labels and images for images, labels in counts)
    shown = ", ".join(f"{images} images and {labels} labels" for images, labels in counts)
    yield CheckResult(
        "counts",
        passed=agree,
        hard=True,
        measured=shown,
        bound="as many labels as images, in every split, and not none",
    )
    shapes = [split.images.shape[1:] for split in splits]
    fitting = (
        len(set(shapes)) == 1
        and len(shapes[0]) == _IMAGE_DIMENSIONS - 1
        and shapes[0][2] in _CHANNELS
    )
    yield CheckResult(
        "image_shape",
        passed=fitting,
        hard=True,
        measured=_once(shapes),
        bound="one (height, width, 1 or 3)",
    )
    kinds = [f"{split.images.dtype} images, {split.labels.dtype} labels" for split in splits]
    expected = "uint8 images, int16 labels"
    yield CheckResult(
        "dtype", passed=set(kinds) == {expected}, hard=True, measured=_once(kinds), bound=expected
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


def _once(values: Sequence[object]) -> str:
    """What the splits have, once if it is the same."""
    return " and ".join(dict.fromkeys(str(value) for value in values))


def _content(dataset: Dataset, limits: CheckLimits) -> Iterator[CheckResult]:
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
        hard=True,
        measured=f"{len(absent)} absent",
        bound="0 absent",
        detail=_some(absent),
    )
    for subset, split in dataset.splits.items():
        yield _constant(f"constant_images_{subset}", split, limits)
    digests = image_digests(train.images), image_digests(test.images)
    repeated = len(train) - len(np.unique(digests[0]))
    yield _share(
        "train_duplicates", repeated, len(train), limits.duplicate_share, hard=limits.strict
    )
    leaked = int(np.isin(digests[1], digests[0]).sum())
    yield _share("test_images_in_train", leaked, len(test), limits.leaked_share, hard=limits.strict)
    if (own := dataset.validation) is not None:
        seen = int(np.isin(image_digests(own.images), digests[0]).sum())
        yield _share(
            "validation_images_in_train", seen, len(own), limits.leaked_share, hard=limits.strict
        )
    smallest, largest = int(counts[0].min()), int(counts[0].max())
    ratio = largest / max(smallest, 1)
    yield CheckResult(
        "class_balance",
        passed=ratio <= limits.imbalance,
        hard=limits.strict,
        measured=round(ratio, 4),
        bound=f"at most {limits.imbalance:g} times",
        detail=f"{smallest} to {largest} training images in a class",
    )
    yield _brightness(dataset, limits)


def _brightness(dataset: Dataset, limits: CheckLimits) -> CheckResult:
    """Compare the splits' mean pixels: no difference of content explains a factor of ten."""
    means = {subset: float(split.images.mean()) for subset, split in dataset.splits.items()}
    ratio = (max(means.values()) + _DARK) / (min(means.values()) + _DARK)
    shown = ", ".join(f"{mean:.2f} in {subset}" for subset, mean in means.items())
    return CheckResult(
        "brightness",
        passed=ratio <= limits.brightness,
        hard=True,
        measured=round(ratio, 2),
        bound=f"at most {limits.brightness:g} times",
        detail=f"mean pixels of 0 to 255: {shown}; give all splits on one scale",
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _constant(name: str, split: Split, limits: CheckLimits) -> CheckResult:
    rows = split.images.reshape(len(split), -1)
    highest = rows.max(axis=1)
    constant = highest == rows.min(axis=1)
    zero = int((constant & (highest == 0)).sum())
    result = _share(name, int(constant.sum()), len(split), limits.constant_share, hard=True)
    return replace(result, detail=f"{result.detail}, {zero} of them all zero")


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
