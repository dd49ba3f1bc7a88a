"""Does what is scored still look like what the model was validated on?

Four measures of an image and its score are counted: the predicted class, the confidence, the mean brightness and the
share of inked pixels. Counts of two sets are compared by the population stability index and by Kolmogorov–Smirnov.
Counts add up batch by batch, and a reference of them is small enough to be kept with a run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nnbuild.errors import DataError

REFERENCE = "reference.json"
"""The file of a run that holds what its scores are compared with."""

BINS = 200
MEASURES = ("predicted", "confidence", "brightness", "ink")
_INKED = 128  # a pixel from here on counts as ink
_GROUPS = 10  # of about equal share in the reference, for the index: deciles are its usual bins
_FLOOR = 1e-4  # a share of none would make the index infinite
_BY_CHANCE = 1e-3  # how often rows like the reference's may pass a threshold

Counts = NDArray[np.int64]


class Drift(BaseModel):
    """One measure, held against the reference.

    Attributes:
        measure: `predicted`, `confidence`, `brightness` or `ink`.
        statistic: `psi`, the population stability index, 0 or more; or `ks`, the Kolmogorov–Smirnov distance, 0 to 1:
            the largest gap between the cumulated shares (of classes: in the order of their numbers).
        value: of the statistic.
        threshold: what it may be: as asked for, or what chance alone reaches with so few rows if that is more.
        exceeded: whether the value is above it.
        rows: that were compared with the reference.
        reference_rows: of the reference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    measure: str
    statistic: Literal["psi", "ks"]
    value: float
    threshold: float
    exceeded: bool
    rows: int
    reference_rows: int


@dataclass(frozen=True)
class Summary:
    """Counts of a set of images and what was predicted for them; two summaries add up.

    Attributes:
        predicted: int64, shape (classes,).
        confidence: int64, shape (200,), in bins of equal width from 0 to 1, as the others.
        brightness: int64, shape (200,), of the images' mean pixel over 255.
        ink: int64, shape (200,), of the share of pixels of 128 or more.
    """

    predicted: Counts
    confidence: Counts
    brightness: Counts
    ink: Counts

    def __add__(self, other: "Summary") -> "Summary":
        """Both sets together."""
        return Summary(
            *(mine + theirs for mine, theirs in zip(self.parts(), other.parts(), strict=True))
        )

    def parts(self) -> tuple[Counts, ...]:
        """The counts, in the order of `MEASURES`."""
        return self.predicted, self.confidence, self.brightness, self.ink

    def mean_brightness(self) -> float:
        """Return the mean pixel of all images, above 0 and below 255, as far as the bins tell it."""
        middles = (np.arange(BINS) + 0.5) * (255 / BINS)
        return float((self.brightness * middles).sum() / self.brightness.sum())

    def as_json(self) -> dict[str, list[int]]:
        """As it is kept."""
        return {name: counts.tolist() for name, counts in zip(MEASURES, self.parts(), strict=True)}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Summary":
        """The inverse of `as_json`.

        Raises:
            DataError: it is something else.
        """
        try:
            return cls(*(np.asarray(kept[name], np.int64) for name in MEASURES))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"no counts of {', '.join(MEASURES)} ({type(error).__name__}); restore the file"
            ) from error


def summarise(
    images: NDArray[np.uint8], predicted: NDArray[Any], confidence: NDArray[Any], classes: int
) -> Summary:
    """Count a batch.

    Args:
        images: uint8, shape (m, height, width, channels): of the whole batch, or of a part; they cost the most.
        predicted: integers, shape (n,).
        confidence: float, shape (n,), from 0 to 1.
        classes: how many there are.
    """
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    # Bits of a byte at a time: eight times fewer numbers to add up.
    inked = np.bitwise_count(np.packbits(flat >= _INKED, axis=1)).sum(axis=1, dtype=np.uint32)
    return Summary(
        np.bincount(predicted, minlength=classes),
        _binned(confidence, 1),
        _binned(flat.sum(axis=1, dtype=np.uint32), 255 * flat.shape[1]),
        _binned(inked, flat.shape[1]),
    )


def _binned(values: NDArray[Any], most: int) -> Counts:
    return np.bincount(
        np.minimum((values * (BINS / most)).astype(np.int64), BINS - 1), minlength=BINS
    )


def compare(reference: Summary, scored: Summary, *, psi: float, ks: float) -> list[Drift]:
    """How far what was scored is from the reference: both statistics of each measure.

    With few rows chance alone passes any threshold, so that it is raised to what rows like the reference's pass once
    in a thousand times: by the chi-squared distribution of the index (Yurdakul, Statistical Properties of Population
    Stability Index, 2018), and by Smirnov's bound of the distance.

    Args:
        reference: of examples that the network was not trained on.
        scored: of the job.
        psi: threshold of the population stability index.
        ks: threshold of the Kolmogorov–Smirnov distance.

    Raises:
        DataError: one of them is empty, or they are of different numbers of classes.
    """
    found = []
    for name, mine, theirs in zip(MEASURES, reference.parts(), scored.parts(), strict=True):
        if len(mine) != len(theirs):
            raise DataError(
                f"{name} has {len(theirs)} bins, the reference {len(mine)}; compare runs of the same classes"
            )
        rows, others = int(theirs.sum()), int(mine.sum())
        if not rows or not others:
            raise DataError(f"no rows to compare: {others} in the reference, {rows} scored")
        grouped = (mine, theirs) if name == "predicted" else _grouped(mine, theirs)
        both = 1 / rows + 1 / others
        for statistic, value, threshold in (
            ("psi", _stability(*grouped), max(psi, _chance_of_psi(len(grouped[0]) - 1) * both)),
            (
                "ks",
                _distance(mine, theirs),
                max(ks, math.sqrt(-math.log(_BY_CHANCE / 2) / 2 * both)),
            ),
        ):
            about = {
                "measure": name,
                "statistic": statistic,
                "value": value,
                "threshold": threshold,
            }
            found.append(
                Drift(**about, exceeded=value > threshold, rows=rows, reference_rows=others)
            )
    return found


def _grouped(mine: Counts, theirs: Counts) -> tuple[Counts, Counts]:
    """Neighbouring bins together, so that each group has about a tenth of the reference."""
    below = np.cumsum(mine) - mine
    group = np.minimum(below * _GROUPS // max(int(mine.sum()), 1), _GROUPS - 1)
    _, number = np.unique(group, return_inverse=True)
    return tuple(np.bincount(number, weights=each).astype(np.int64) for each in (mine, theirs))  # type: ignore[return-value]


def _stability(mine: Counts, theirs: Counts) -> float:
    expected, actual = (
        np.maximum(each / each.sum(), max(_FLOOR, 0.5 / each.sum())) for each in (mine, theirs)
    )
    return float(((actual - expected) * np.log(actual / expected)).sum())


def _distance(mine: Counts, theirs: Counts) -> float:
    return float(np.abs(np.cumsum(mine / mine.sum()) - np.cumsum(theirs / theirs.sum())).max())


def _chance_of_psi(freedom: int) -> float:
    """What chi-squared passes by chance so rarely, by Wilson and Hilferty's approximation (1931)."""
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    return float(
        freedom * (1 - spread + NormalDist().inv_cdf(1 - _BY_CHANCE) * math.sqrt(spread)) ** 3
    )
