"""Does what is scored still look like what the champion was tried on?

Population stability index and Kolmogorov–Smirnov of three things: the mix of predicted classes, the confidence, and the
mean pixel of an image. A reference is a handful of counts, small enough to be kept with a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import DataError

BINS = 20
_FLOOR = 1e-4  # a share of none would make the index infinite


class Drift(NamedTuple):
    """One measure of drift.

    Attributes:
        of: `predicted`, `confidence` or `pixels`.
        psi: population stability index, 0 or more; by a rule of thumb from credit scoring, 0.1 is worth a look and
            0.25 a change (Siddiqi, Credit Risk Scorecards, 2006).
        ks: Kolmogorov–Smirnov distance, 0 to 1: the largest gap between the cumulated shares.
        rows: that were compared with the reference.
    """

    of: str
    psi: float
    ks: float
    rows: int


@dataclass(frozen=True)
class Summary:
    """Counts of a set of images and what was predicted for them; two summaries add up.

    Attributes:
        predicted: int64, shape (classes,).
        confidence: int64, shape (20,), in bins of equal width from 0 to 1.
        pixels: int64, shape (20,), of the images' mean pixel, in bins of equal width from 0 to 255.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.int64]
    pixels: NDArray[np.int64]

    def __add__(self, other: "Summary") -> "Summary":
        """Both sets together."""
        return Summary(*(mine + theirs for mine, theirs in zip(self.parts(), other.parts(), strict=True)))

    def parts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The three counts, in the order of their names."""
        return self.predicted, self.confidence, self.pixels

    def as_json(self) -> dict[str, list[int]]:
        """As it is kept with a run."""
        return dict(zip(("predicted", "confidence", "pixels"), (each.tolist() for each in self.parts()), strict=True))

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Summary":
        """The inverse of `as_json`."""
        return cls(*(np.asarray(kept[name], np.int64) for name in ("predicted", "confidence", "pixels")))


def summarise(images: NDArray[np.uint8], predicted: NDArray[Any], confidence: NDArray[Any], classes: int) -> Summary:
    """Count a batch.

    Args:
        images: uint8, shape (n, height, width, channels).
        predicted: integers, shape (n,).
        confidence: float, shape (n,), from 0 to 1.
        classes: how many there are.
    """
    mean = images.reshape(len(images), -1).mean(axis=1) if len(images) else np.zeros(0)
    return Summary(
        np.bincount(predicted.astype(np.int64), minlength=classes),
        _binned(confidence.astype(np.float64)),
        _binned(mean / 255),
    )


def _binned(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(np.clip((shares * BINS).astype(np.int64), 0, BINS - 1), minlength=BINS)


def measure(reference: Summary, scored: Summary) -> list[Drift]:
    """How far what was scored is from the reference.

    Args:
        reference: of the run's test images.
        scored: of the job.

    Raises:
        DataError: one of them is empty, or they are of different numbers of classes.
    """
    found = []
    for name, mine, theirs in zip(
        ("predicted", "confidence", "pixels"), reference.parts(), scored.parts(), strict=True
    ):
        if len(mine) != len(theirs):
            raise DataError(
                f"{name} has {len(theirs)} bins, the reference {len(mine)}; compare runs of the same classes"
            )
        if not mine.sum() or not theirs.sum():
            raise DataError(f"no rows to compare: {mine.sum()} in the reference, {theirs.sum()} scored")
        found.append(Drift(name, *_distances(mine / mine.sum(), theirs / theirs.sum()), int(theirs.sum())))
    return found


def _distances(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> tuple[float, float]:
    ks = float(np.abs(np.cumsum(expected) - np.cumsum(actual)).max())
    expected, actual = np.maximum(expected, _FLOOR), np.maximum(actual, _FLOOR)
    return float(((actual - expected) * np.log(actual / expected)).sum()), ks
