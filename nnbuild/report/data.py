"""Values for the report, from the tables and the manifest of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.report.charts import Bin
from nnbuild.training.history import SECONDS

SHOWN_CLASSES = 20
_MAX_CONFUSIONS = 8
_TEST = "test"

Points = list[tuple[float, float]]
Curves = Mapping[str, Points]
"""Points (epoch, value) of each metric."""


class Confusion(NamedTuple):
    """Number of images of one class that were predicted as another."""

    label: str
    predicted: str
    images: int


@dataclass(frozen=True)
class Errors:
    """Incorrect predictions on the test images.

    Attributes:
        counts: Confusion matrix, int64, shape (classes, classes), with a row for each true class.
        shown: Labels of the classes to show, at most 20: those with the most errors, in order.
        most: Most frequent confusions, in descending order.
    """

    counts: NDArray[np.int64]
    shown: list[int]
    most: list[Confusion]

    @property
    def images(self) -> int:
        """Return the number of test images."""
        return int(self.counts.sum())

    @property
    def incorrect(self) -> int:
        """Return the number of test images that are classified incorrectly."""
        return self.images - int(np.trace(self.counts))


def overall(evaluation: pa.Table) -> dict[str, float]:
    """Return the metrics over all classes of the test set."""
    return {row["metric"]: row["value"] for row in _of_test(evaluation) if row["label"] is None}


def by_class(evaluation: pa.Table) -> dict[int, dict[str, float]]:
    """Return the metrics of each class of the test set, by label."""
    metrics: dict[int, dict[str, float]] = {}
    for row in _of_test(evaluation):
        if row["label"] is not None:
            metrics.setdefault(row["label"], {})[row["metric"]] = row["value"]
    return metrics


def _of_test(table: pa.Table) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["subset"] == _TEST]


def errors(confusion: pa.Table, names: list[str]) -> Errors:
    """Return the incorrect predictions from the `confusion` table."""
    counts = np.zeros((len(names), len(names)), np.int64)
    test = np.array(confusion["subset"].to_pylist()) == _TEST
    columns = (confusion[name].to_numpy()[test] for name in ("label", "predicted", "count"))
    labels, predicted, count = columns
    counts[labels, predicted] = count
    off = counts - np.diag(np.diag(counts))
    shown = np.sort(np.argsort(-(off.sum(axis=0) + off.sum(axis=1)), kind="stable")[:SHOWN_CLASSES])
    most = np.argsort(-off, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    pairs = [tuple(map(int, divmod(int(cell), len(names)))) for cell in most]
    return Errors(
        counts,
        [int(each) for each in shown],
        [Confusion(names[a], names[b], int(off[a, b])) for a, b in pairs if off[a, b]],
    )


def curves(history: pa.Table) -> dict[str, Points]:
    """Return the points (epoch, value) of each metric, in the order of the history."""
    points: dict[str, Points] = {}
    ordered = history.sort_by("epoch")
    columns = (ordered[name].to_pylist() for name in ("metric", "epoch", "value"))
    for metric, epoch, value in zip(*columns, strict=True):
        if metric != SECONDS:
            points.setdefault(metric, []).append((epoch, value))
    return points


class Diagram(NamedTuple):
    """Reliability diagram at one temperature, with its expected calibration error."""

    temperature: float
    error: float
    bins: list[Bin]


def diagrams(calibration: pa.Table) -> list[Diagram]:
    """Return the reliability diagrams of the test set, before and after temperature scaling."""
    bins: dict[tuple[float, float], list[Bin]] = {}
    for row in sorted(_of_test(calibration), key=lambda each: float(each["bin_lower"])):
        key = row["temperature"], row["expected_calibration_error"]
        each = Bin(
            row["bin_lower"],
            row["bin_upper"],
            row["count"],
            row["mean_confidence"],
            row["accuracy"],
        )
        bins.setdefault(key, []).append(each)
    return [Diagram(*key, bins[key]) for key in sorted(bins, key=lambda each: each[0] != 1)]


def confidences(predictions: pa.Table, bins: int = 20) -> tuple[list[int], list[int]]:
    """Count the correct and the incorrect predictions in bins of confidence from 0 to 1."""
    known = predictions.filter(predictions["label"].is_valid())
    confidence = known["confidence"].to_numpy()
    correct = known["label"].to_numpy() == known["predicted"].to_numpy()

    def counts(rows: NDArray[np.bool_]) -> list[int]:
        histogram, _ = np.histogram(confidence[rows], bins=bins, range=(0, 1))
        return [int(each) for each in histogram]

    return counts(correct), counts(~correct)
