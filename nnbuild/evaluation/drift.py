"""Measure the drift of scored data from the validation data of the model.

Five measures of an image and its score are counted: the predicted class, the confidence, the mean
brightness, the fraction of bright pixels (`ink`) and the energy of the logits. The counts of two
sets are compared by the population stability index and by the Kolmogorov–Smirnov distance. Counts
add up batch by batch, and a reference is small enough to be stored with a run.
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
"""File of a run with the counts that its scores are compared with."""

BINS = 200
MEASURES = ("predicted", "confidence", "brightness", "ink", "energy")
_EVERYWHERE = MEASURES[:4]  # references of earlier versions have no energy
_ENGINE_TOLERANCE = 1e-4  # largest relative difference between the logits of two engines
_INK_THRESHOLD = 128  # smallest pixel that counts as ink
_GROUPS = 10  # the index is usually computed over deciles of the reference
_MIN_FRACTION = 1e-4  # a fraction of 0 would make the index infinite
_FALSE_ALARM_RATE = 1e-3  # for rows that are distributed as the reference is

Counts = NDArray[np.int64]


class Drift(BaseModel):
    """One measure, compared with the reference.

    Attributes:
        measure: `predicted`, `confidence`, `brightness`, `ink` or `energy`.
        statistic: `psi`, the population stability index, 0 or more; or `ks`, the
            Kolmogorov–Smirnov distance, 0 to 1: the largest difference between the cumulative
            distributions (of classes: in the order of their numbers).
        value: Value of the statistic.
        threshold: The requested threshold, or the value that chance reaches with so few rows if
            that is larger.
        exceeded: Whether the value is above the threshold.
        rows: Number of rows compared with the reference.
        reference_rows: Number of rows of the reference.
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
    """Histograms of a set of images and their predictions; summaries can be added.

    Attributes:
        predicted: Number of images by predicted class, int64, shape (classes,).
        confidence: Histogram of the confidence, int64, shape (200,), in bins of equal width from
            0 to 1, as the others.
        brightness: Histogram of the mean pixel over 255, int64, shape (200,).
        ink: Histogram of the fraction of pixels of 128 or more, int64, shape (200,).
        energy: Histogram of the energy between the edges of the reference, int64, shape
            (edges + 1,); None if the reference was made before energies were counted.
    """

    predicted: Counts
    confidence: Counts
    brightness: Counts
    ink: Counts
    energy: Counts | None = None

    def __add__(self, other: "Summary") -> "Summary":
        """Add the counts of two sets."""
        mine, theirs = self.counts(), other.counts()
        return Summary(**{name: mine[name] + theirs[name] for name in mine if name in theirs})

    def counts(self) -> dict[str, Counts]:
        """Return the histograms by measure, in the order of `MEASURES`."""
        return {name: each for name in MEASURES if (each := getattr(self, name)) is not None}

    def mean_brightness(self) -> float:
        """Return the mean pixel of all images, between 0 and 255, estimated from the histogram."""
        middles = (np.arange(BINS) + 0.5) * (255 / BINS)
        return float((self.brightness * middles).sum() / self.brightness.sum())

    def as_json(self) -> dict[str, list[int]]:
        """Return the JSON value of the summary."""
        return {name: counts.tolist() for name, counts in self.counts().items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Summary":
        """Restore a summary from the result of `as_json`.

        Raises:
            DataError: The value has another form.
        """
        try:
            names = [*_EVERYWHERE, *(["energy"] if "energy" in value else [])]
            return cls(**{name: np.asarray(value[name], np.int64) for name in names})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"the reference has no counts of {', '.join(_EVERYWHERE)} "
                f"({type(error).__name__}); restore the file"
            ) from error


def energy_edges(energies: NDArray[Any]) -> NDArray[np.float64]:
    """Return the edges between the bins of a histogram of the energy.

    Energies have no fixed range. The edges are therefore the midpoints between the quantiles of the
    reference, as far as these differ by more than two engines do.

    Args:
        energies: Energies of the reference, float, shape (n,), n of 1 or more.

    Returns:
        Ascending edges, shape (at most 199,).
    """
    wide = energies.astype(np.float64)
    points = np.unique(np.quantile(wide, np.linspace(0, 1, BINS), method="nearest"))
    tolerance = _ENGINE_TOLERANCE * np.abs(wide).max()
    edges: NDArray[np.float64] = (points[:-1] + points[1:])[np.diff(points) > tolerance] / 2
    return edges


def summarise(
    images: NDArray[np.uint8],
    predicted: NDArray[Any],
    confidence: NDArray[Any],
    classes: int,
    *,
    energies: NDArray[Any] | None = None,
    edges: NDArray[np.float64] | None = None,
) -> Summary:
    """Compute the histograms of a batch.

    Args:
        images: Images of the batch, or of a part of it to save time, uint8, shape
            (m, height, width, channels).
        predicted: Predicted classes, integers, shape (n,).
        confidence: Probability of the predicted class, float, shape (n,), from 0 to 1.
        classes: Number of classes.
        energies: Energies of the batch, or of a part of it, float, shape (m,).
        edges: Edges of their bins, from `energy_edges`; None to count no energies.
    """
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    # Packed into bits, so that eight times fewer numbers are added up.
    inked = np.bitwise_count(np.packbits(flat >= _INK_THRESHOLD, axis=1)).sum(
        axis=1, dtype=np.uint32
    )
    return Summary(
        np.bincount(predicted, minlength=classes),
        _binned(confidence, 1),
        _binned(flat.sum(axis=1, dtype=np.uint32), 255 * flat.shape[1]),
        _binned(inked, flat.shape[1]),
        None
        if energies is None or edges is None
        else np.bincount(np.searchsorted(edges, energies), minlength=len(edges) + 1),
    )


def _binned(values: NDArray[Any], most: int) -> Counts:
    return np.bincount(
        np.minimum((values * (BINS / most)).astype(np.int64), BINS - 1), minlength=BINS
    )


def compare(reference: Summary, scored: Summary, *, psi: float, ks: float) -> list[Drift]:
    """Compare scored data with the reference: both statistics of each measure that both have.

    With few rows, chance alone exceeds any threshold. Thresholds are therefore raised to the value
    that rows with the distribution of the reference exceed once in a thousand times: by the
    chi-squared distribution of the index (Yurdakul, "Statistical Properties of Population
    Stability Index", 2018), and by Smirnov's bound of the distance.

    Args:
        reference: Summary of examples that were not used for training.
        scored: Summary of the scored data.
        psi: Threshold of the population stability index.
        ks: Threshold of the Kolmogorov–Smirnov distance.

    Raises:
        DataError: A summary is empty, or the numbers of classes differ.
    """
    drifts = []
    scored_counts = scored.counts()
    for name, mine in reference.counts().items():
        if (theirs := scored_counts.get(name)) is None:
            continue
        if len(mine) != len(theirs):
            raise DataError(
                f"{name} has {len(theirs)} bins, the reference {len(mine)}; compare runs with the "
                "same classes"
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
                max(ks, math.sqrt(-math.log(_FALSE_ALARM_RATE / 2) / 2 * both)),
            ),
        ):
            about = {
                "measure": name,
                "statistic": statistic,
                "value": value,
                "threshold": threshold,
            }
            drifts.append(
                Drift(**about, exceeded=value > threshold, rows=rows, reference_rows=others)
            )
    return drifts


def _grouped(mine: Counts, theirs: Counts) -> tuple[Counts, Counts]:
    """Merge neighbouring bins into groups of about a tenth of the reference each."""
    below = np.cumsum(mine) - mine
    group = np.minimum(below * _GROUPS // max(int(mine.sum()), 1), _GROUPS - 1)
    _, number = np.unique(group, return_inverse=True)
    return _merged(number, mine), _merged(number, theirs)


def _merged(group: NDArray[np.intp], counts: Counts) -> Counts:
    return np.bincount(group, weights=counts).astype(np.int64)


def _stability(mine: Counts, theirs: Counts) -> float:
    expected, actual = (
        np.maximum(each / each.sum(), max(_MIN_FRACTION, 0.5 / each.sum()))
        for each in (mine, theirs)
    )
    return float(((actual - expected) * np.log(actual / expected)).sum())


def _distance(mine: Counts, theirs: Counts) -> float:
    return float(np.abs(np.cumsum(mine / mine.sum()) - np.cumsum(theirs / theirs.sum())).max())


def _chance_of_psi(freedom: int) -> float:
    """Return the quantile of chi-squared by the approximation of Wilson and Hilferty (1931)."""
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    return float(
        freedom
        * (1 - spread + NormalDist().inv_cdf(1 - _FALSE_ALARM_RATE) * math.sqrt(spread)) ** 3
    )
