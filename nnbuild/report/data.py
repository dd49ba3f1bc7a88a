"""What the tables say, in the form that the page needs it; figures only, no words."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.report.charts import Bin
from nnbuild.training.history import SECONDS

SHOWN_CLASSES = 20
_CONFUSIONS = 8
_TEST = "test"

Points = list[tuple[float, float]]


class Confusion(NamedTuple):
    """How often one class was taken for another."""

    label: str
    predicted: str
    images: int


@dataclass(frozen=True)
class Errors:
    """Where the network is wrong.

    Attributes:
        counts: int64, shape (classes, classes): rows are true classes, columns predicted ones.
        shown: the classes with the most errors, in the order of the labels; all of them if they are few.
        most: the most frequent confusions, the first first.
    """

    counts: NDArray[np.int64]
    shown: list[int]
    most: list[Confusion]

    @property
    def images(self) -> int:
        """All of them."""
        return int(self.counts.sum())

    @property
    def wrong(self) -> int:
        """Those that were taken for another class."""
        return self.images - int(np.trace(self.counts))


def overall(evaluation: Any) -> dict[str, float]:
    """The metrics on the test set that are about all classes."""
    return {row["metric"]: row["value"] for row in _of_test(evaluation) if row["label"] is None}


def by_class(evaluation: Any) -> dict[int, dict[str, float]]:
    """The metrics on the test set of each class, by its label."""
    found: dict[int, dict[str, float]] = {}
    for row in _of_test(evaluation):
        if row["label"] is not None:
            found.setdefault(row["label"], {})[row["metric"]] = row["value"]
    return found


def _of_test(table: Any) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["subset"] == _TEST]


def errors(confusion: Any, names: list[str]) -> Errors:
    """Read the confusion table."""
    counts = np.zeros((len(names), len(names)), np.int64)
    test = np.array(confusion["subset"].to_pylist()) == _TEST
    columns = (confusion[name].to_numpy()[test] for name in ("label", "predicted", "count"))
    labels, predicted, count = columns
    counts[labels, predicted] = count
    off = counts - np.diag(np.diag(counts))
    shown = np.sort(np.argsort(-(off.sum(axis=0) + off.sum(axis=1)), kind="stable")[:SHOWN_CLASSES])
    most = np.argsort(-off, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [tuple(map(int, divmod(int(cell), len(names)))) for cell in most]
    return Errors(
        counts,
        [int(each) for each in shown],
        [Confusion(names[a], names[b], int(off[a, b])) for a, b in pairs if off[a, b]],
    )


def curves(history: Any) -> dict[str, Points]:
    """(epoch, value) of each metric in the order that Keras gave them, without the seconds, which are no metric."""
    found: dict[str, Points] = {}
    ordered = history.sort_by("epoch")
    columns = (ordered[name].to_pylist() for name in ("metric", "epoch", "value"))
    for metric, epoch, value in zip(*columns, strict=True):
        if metric != SECONDS:
            found.setdefault(metric, []).append((epoch, value))
    return found


class Diagram(NamedTuple):
    """The reliability at one temperature, and its expected calibration error."""

    temperature: float
    error: float
    bins: list[Bin]


def diagrams(calibration: Any) -> list[Diagram]:
    """The reliability diagrams of the test set: before temperature scaling and after."""
    found: dict[tuple[float, float], list[Bin]] = {}
    for row in sorted(_of_test(calibration), key=lambda each: float(each["bin_lower"])):
        about = row["temperature"], row["expected_calibration_error"]
        bins = Bin(
            row["bin_lower"],
            row["bin_upper"],
            row["count"],
            row["mean_confidence"],
            row["accuracy"],
        )
        found.setdefault(about, []).append(bins)
    return [Diagram(*about, found[about]) for about in sorted(found, key=lambda each: each[0] != 1)]


def confidences(predictions: Any, bins: int = 20) -> tuple[list[int], list[int]]:
    """How many labelled test images were classified right, and wrong, at each confidence from 0 to 1."""
    known = predictions.filter(predictions["label"].is_valid())
    confidence = known["confidence"].to_numpy()
    right = known["label"].to_numpy() == known["predicted"].to_numpy()
    both = [
        np.histogram(confidence[each], bins=bins, range=(0, 1))[0].tolist()
        for each in (right, ~right)
    ]
    return both[0], both[1]
