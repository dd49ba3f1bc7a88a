"""Accuracy by slice: the test images that share a value of a column, such as those of one site.

A model can be better on the whole and worse for a few. Among many slices, some are worse by chance:
p-values are corrected for their number by Holm's method (Scandinavian Journal of Statistics 6,
1979, 65-70), so that a model that is worse in no slice is refused with a probability of at most
`gate.significance`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation.metrics import BINS
from nnbuild.evaluation.noninferiority import p_value
from nnbuild.evaluation.significance import holm_correction, wilson_interval

MAX_VALUES = 200
"""Most values of a column whose slices are measured."""


class Slice(NamedTuple):
    """A model on the test images with one value of a column.

    Attributes:
        column_name: Name of the column.
        value: The value; None for the images without one.
        rows: Number of test images.
        accuracy: Fraction of them that the model classifies correctly.
        accuracy_low: Lower end of Wilson's 95 % interval of the accuracy.
        accuracy_high: Upper end of the interval.
        calibration_error: Expected calibration error.
        compared: Number of images that the champion was compared on; None without a comparison.
        champion_accuracy: Accuracy of the champion on these.
        difference: Accuracy of the model minus the champion's, on these.
        p_worse: P-value of the hypothesis that the model is at most `gate.margin` less accurate
            than the champion: small if it is worse.
        p_corrected: The p-value corrected for the number of slices: of the columns in `gate.slices`
            for these columns, and of all other columns for the others.
    """

    column_name: str
    value: str | None
    rows: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    calibration_error: float
    compared: int | None = None
    champion_accuracy: float | None = None
    difference: float | None = None
    p_worse: float | None = None
    p_corrected: float | None = None


class Compared(NamedTuple):
    """The test images that two models were compared on.

    Attributes:
        rows: Whether each test image was compared, bool, shape (n,).
        challenger: Whether the model classifies each compared image correctly, bool.
        champion: The same for the champion.
    """

    rows: NDArray[np.bool_]
    challenger: NDArray[np.bool_]
    champion: NDArray[np.bool_]


def measure_slices(
    kept: pa.Table,
    correct: NDArray[np.bool_],
    confidence: NDArray[np.float32],
    config: GateConfig,
    compared: Compared | None = None,
) -> list[Slice]:
    """Measure a model on every slice of its test images.

    Args:
        kept: Columns that describe the images. A column with more than `MAX_VALUES` values, such as
            a serial number, has no slices.
        correct: Whether the model classifies each image correctly, bool, shape (n,).
        confidence: Probability of the predicted class, float32, shape (n,).
        config: Settings of the gate: margin, significance, and columns.
        compared: Comparison with the champion; None if there is none.

    Returns:
        The slices by column and then by value, images without a value last.
    """
    measured: list[Slice] = []
    for in_gate in (True, False):
        columns = {
            name: kept[name]
            for name in kept.column_names
            if (name in config.slices) == in_gate and len(pc.unique(kept[name])) <= MAX_VALUES
        }
        groups = [
            (name, value, rows)
            for name, column in columns.items()
            for value, rows in _rows_by_value(column)
        ]
        family = []
        for name, value, rows in groups:
            alone = _alone(name, value, correct[rows], confidence[rows])
            level = config.significance / len(groups)  # of the strictest of Holm's tests
            family.append(_with_champion(alone, rows, compared, config.margin, level))
        measured += _corrected(family)
    places = {name: place for place, name in enumerate(kept.column_names)}
    return sorted(
        measured, key=lambda each: (places[each.column_name], each.value is None, each.value or "")
    )


def _rows_by_value(column: pa.ChunkedArray) -> Iterator[tuple[str | None, NDArray[np.intp]]]:
    """Yield each value of a column, and its rows."""
    encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    codes = np.asarray(encoded.indices)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(encoded.dictionary)))
    yield from zip(encoded.dictionary.to_pylist(), np.split(order, ends[:-1]), strict=True)


def _alone(
    name: str, value: str | None, correct: NDArray[np.bool_], confidence: NDArray[np.float32]
) -> Slice:
    """Measure a model on one slice."""
    accuracy, rows = float(correct.mean()), len(correct)
    low, high = wilson_interval(accuracy, rows)
    error = _calibration_error(confidence, correct)
    return Slice(name, value, rows, accuracy, low, high, error)


def _with_champion(
    measured: Slice,
    rows: NDArray[np.intp],
    compared: Compared | None,
    margin: float,
    level: float,
) -> Slice:
    """Add the comparison with the champion to a slice."""
    if compared is None:
        return measured
    places = np.cumsum(compared.rows) - 1  # of each test image among the compared ones
    both = places[rows[compared.rows[rows]]]
    if not len(both):
        return measured._replace(compared=0)
    challenger, champion = compared.challenger[both], compared.champion[both]
    won, lost = int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
    difference = (won - lost) / len(both)
    # A drop in the sample that is allowed is never significant.
    worse = (
        1.0
        if difference >= -margin
        else p_value(lost, won, len(both), difference=margin, significance=level)
    )
    return measured._replace(
        compared=len(both),
        champion_accuracy=float(champion.mean()),
        difference=difference,
        p_worse=worse,
    )


def _calibration_error(confidence: NDArray[np.float32], correct: NDArray[np.bool_]) -> float:
    """Return the expected calibration error; see `nnbuild.evaluation.metrics.calibration_error`."""
    bins = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, confidence, BINS) - np.bincount(bins, correct, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _corrected(family: Sequence[Slice]) -> list[Slice]:
    tested = [place for place, each in enumerate(family) if each.p_worse is not None]
    corrected = holm_correction([float(family[place].p_worse or 0.0) for place in tested])
    found = list(family)
    for place, value in zip(tested, corrected, strict=True):
        found[place] = found[place]._replace(p_corrected=value)
    return found
