"""Compute the metrics in the tables `evaluation`, `confusion` and `calibration` from logits."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.logits import check_logits, log_softmax, softmax

BINS = 15  # of the reliability diagram, as in Guo et al. 2017 (arXiv 1706.04599)

Labels = NDArray[np.int16]


class Metric(NamedTuple):
    """A metric over all classes that reports, comparisons and artifacts show.

    Attributes:
        name: Name in the evaluation table.
        title: Title for people.
        higher_is_better: Whether a higher value is better.
        is_fraction: Whether it is shown as a percentage.
    """

    name: str
    title: str
    higher_is_better: bool
    is_fraction: bool


SUMMARY_METRICS = (
    Metric("accuracy", "accuracy", higher_is_better=True, is_fraction=True),
    Metric("loss", "loss (nats)", higher_is_better=False, is_fraction=False),
    Metric(
        "expected_calibration_error",
        "calibration error",
        higher_is_better=False,
        is_fraction=False,
    ),
    Metric("top_2_accuracy", "top-2 accuracy", higher_is_better=True, is_fraction=True),
    Metric("brier_score", "Brier score", higher_is_better=False, is_fraction=False),
    Metric("macro_f1", "macro F1", higher_is_better=True, is_fraction=False),
)
"""The metrics to show, in this order."""


class MetricValue(NamedTuple):
    """One row of the evaluation table.

    Attributes:
        metric: Name of the metric.
        label: Class of the metric, from 0; None for all classes.
        value: Value from 0 to 1, except for `loss` and `negative_log_likelihood` (in nats),
            `brier_score` (0 to 2) and `support` (number of examples).
    """

    metric: str
    label: int | None
    value: float


def evaluate(logits: NDArray[Any], labels: Labels, classes: int) -> list[MetricValue]:
    """Compute all metrics of a set of examples.

    A class that is never predicted has precision 0, and one without examples recall 0, not NaN.

    Args:
        logits: Logits, float, shape (n, classes), n of 1 or more.
        labels: True classes, int16, shape (n,).
        classes: Number of classes.

    Returns:
        Over all classes: `loss`, the mean cross-entropy in nats, which is also the
        `negative_log_likelihood`; `accuracy`; `top_2_accuracy`; `brier_score`, the mean squared
        distance between the probabilities and the one-hot label, 0 to 2;
        `expected_calibration_error` over 15 bins of equal width; and the `macro_` means over the
        classes of `precision`, `recall` and `f1`. For each class these three, and `support`, the
        number of its examples.

    Raises:
        ContractError: The logits violate the contract.
    """
    check_logits(logits, classes)
    rows = np.arange(len(labels))
    log_probabilities = log_softmax(logits.astype(np.float64))
    probabilities = softmax(logits.astype(np.float64))
    correct = logits.argmax(axis=1) == labels
    of_label = logits[rows, labels]
    larger = (logits > of_label[:, None]).sum(axis=1)
    loss = float(-log_probabilities[rows, labels].mean())
    overall = {
        "loss": loss,
        "accuracy": float(correct.mean()),
        "top_2_accuracy": float((larger < 2).mean()),
        "negative_log_likelihood": loss,
        "brier_score": float(
            ((probabilities**2).sum(axis=1) - 2 * probabilities[rows, labels] + 1).mean()
        ),
        "expected_calibration_error": calibration_error(probabilities, labels),
    }
    by_class = _by_class(confusion_counts(labels, logits.argmax(axis=1), classes))
    for name in ("precision", "recall", "f1"):
        overall[f"macro_{name}"] = float(np.mean(by_class[name]))
    return [
        *(MetricValue(name, None, value) for name, value in overall.items()),
        *(
            MetricValue(name, label, float(value))
            for name, values in by_class.items()
            for label, value in enumerate(values)
        ),
    ]


def confusion_counts(
    labels: NDArray[Any], predicted: NDArray[Any], classes: int
) -> NDArray[np.int64]:
    """Count the examples of each true class by predicted class.

    Args:
        labels: True classes, integers from 0 to classes - 1, shape (n,).
        predicted: Predicted classes, of the same form.
        classes: Number of classes.

    Returns:
        Confusion matrix, int64, shape (classes, classes): true classes in rows, predicted ones in
        columns.
    """
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _by_class(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    correct = np.diag(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "precision": _ratio(correct, predicted),
        "recall": _ratio(correct, support),
        "f1": _ratio(2 * correct, support + predicted),
        "support": support.astype(np.float64),
    }


def _ratio(part: NDArray[np.float64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


class Bin(NamedTuple):
    """One row of the calibration table.

    Attributes:
        bin_lower: Lower bound of the confidence in the bin, exclusive, from 0 to 1.
        bin_upper: Upper bound, inclusive.
        count: Number of examples in the bin.
        mean_confidence: Mean of their largest probabilities; None if the bin is empty.
        accuracy: Fraction of them that is classified correctly; None if the bin is empty.
    """

    bin_lower: float
    bin_upper: float
    count: int  # type: ignore[assignment]  # name of the column; hides tuple.count
    mean_confidence: float | None
    accuracy: float | None


def calibration_bins(probabilities: NDArray[Any], labels: Labels, bins: int = BINS) -> list[Bin]:
    """Compute the reliability diagram: accuracy by confidence, in bins of equal width.

    Args:
        probabilities: Probabilities, float, shape (n, classes).
        labels: True classes, int16, shape (n,).
        bins: Number of bins; bin i has the confidences above i / bins and up to (i + 1) / bins.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    confidences = np.bincount(index, weights=confidence, minlength=bins)
    hits = np.bincount(index, weights=correct, minlength=bins)
    return [
        Bin(
            number / bins,
            (number + 1) / bins,
            int(count),
            float(confidences[number] / count) if count else None,
            float(hits[number] / count) if count else None,
        )
        for number, count in enumerate(counts)
    ]


def calibration_error(probabilities: NDArray[Any], labels: Labels, bins: int = BINS) -> float:
    """Compute the expected calibration error.

    It is the mean difference between confidence and accuracy over the bins of the reliability
    diagram, weighted by their counts: Guo et al. 2017 (arXiv 1706.04599), equation 3.

    Args:
        probabilities: Probabilities, float, shape (n, classes).
        labels: True classes, int16, shape (n,).
        bins: Number of bins.

    Returns:
        Error from 0 to 1; 0 without examples.
    """
    gaps = (
        each.count * abs(each.mean_confidence - each.accuracy)
        for each in calibration_bins(probabilities, labels, bins)
        if each.mean_confidence is not None and each.accuracy is not None
    )
    return float(sum(gaps) / max(len(labels), 1))
