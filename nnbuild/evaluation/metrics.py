"""How good the logits are: every figure of the `evaluation`, `confusion` and `calibration` tables."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.logits import check_logits, log_softmax, softmax

BINS = 15  # of the reliability diagram, as in Guo et al. 2017 (arXiv 1706.04599)

Labels = NDArray[np.int16]


class MetricValue(NamedTuple):
    """One row of the evaluation table.

    Attributes:
        metric: its name.
        label: the class that it is about, from 0; None for all classes.
        value: a share from 0 to 1, unless the metric says otherwise (`loss` is in nats, `support` counts examples).
    """

    metric: str
    label: int | None
    value: float


def evaluate(logits: NDArray[Any], labels: Labels, classes: int) -> list[MetricValue]:
    """All metrics of a set of examples.

    A class that is never predicted has precision 0, and one without examples recall 0; neither is NaN.

    Args:
        logits: float, shape (n, classes), n of 1 or more.
        labels: int16, shape (n,), the true classes.
        classes: how many there are.

    Returns:
        Over all classes: `loss`, the mean cross-entropy in nats, which is also the `negative_log_likelihood`;
        `accuracy`; `top_2_accuracy`; `brier_score`, the mean over examples of the squared distance between the
        probabilities and the one-hot label, 0 to 2; `expected_calibration_error` over 15 bins of equal width;
        and the `macro_` means of the figures of each class: `precision`, `recall`, `f1`. For each class these
        three and its `support`, the number of its examples.

    Raises:
        ContractError: the logits are none.
    """
    check_logits(logits, classes)
    each = np.arange(len(labels))
    log_probabilities = log_softmax(logits.astype(np.float64))
    probabilities = softmax(logits.astype(np.float64))
    right = logits.argmax(axis=1) == labels
    of_label = logits[each, labels]
    # Ties count as wrong for the example, except with itself: a network that cannot tell is not right.
    better = (logits > of_label[:, None]).sum(axis=1)
    loss = float(-log_probabilities[each, labels].mean())
    overall = {
        "loss": loss,
        "accuracy": float(right.mean()),
        "top_2_accuracy": float((better < 2).mean()),  # noqa: PLR2004
        "negative_log_likelihood": loss,
        "brier_score": float(
            ((probabilities**2).sum(axis=1) - 2 * probabilities[each, labels] + 1).mean()
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
    """How often each class was taken for each.

    Args:
        labels: integers from 0 to classes - 1, shape (n,).
        predicted: likewise.
        classes: how many there are.

    Returns:
        int64, shape (classes, classes): rows are true classes, columns predicted ones.
    """
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _by_class(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    right = np.diag(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "precision": _share(right, predicted),
        "recall": _share(right, support),
        "f1": _share(2 * right, support + predicted),
        "support": support.astype(np.float64),
    }


def _share(part: NDArray[np.float64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


class Bin(NamedTuple):
    """One row of the calibration table.

    Attributes:
        bin_lower: the bin holds confidences above this, from 0 to 1,
        bin_upper: and up to this.
        count: examples in it.
        mean_confidence: mean of their largest probability; None if there are none.
        accuracy: share of them that is classified right; None likewise.
    """

    bin_lower: float
    bin_upper: float
    count: int  # type: ignore[assignment]  # it is the column's name, and hides tuple.count
    mean_confidence: float | None
    accuracy: float | None


def calibration_bins(probabilities: NDArray[Any], labels: Labels, bins: int = BINS) -> list[Bin]:
    """The reliability diagram: confidence against accuracy in bins of equal width.

    Args:
        probabilities: float, shape (n, classes).
        labels: int16, shape (n,).
        bins: how many; bin i holds the confidences over i / bins and up to (i + 1) / bins.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    confidences = np.bincount(place, weights=confidence, minlength=bins)
    rights = np.bincount(place, weights=right, minlength=bins)
    return [
        Bin(
            index / bins,
            (index + 1) / bins,
            int(count),
            float(confidences[index] / count) if count else None,
            float(rights[index] / count) if count else None,
        )
        for index, count in enumerate(counts)
    ]


def calibration_error(probabilities: NDArray[Any], labels: Labels, bins: int = BINS) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over the bins, weighted by count.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.

    Args:
        probabilities: float, shape (n, classes).
        labels: int16, shape (n,).
        bins: how many.

    Returns:
        From 0 to 1; 0 without examples.
    """
    gaps = (
        each.count * abs(each.mean_confidence - each.accuracy)
        for each in calibration_bins(probabilities, labels, bins)
        if each.mean_confidence is not None and each.accuracy is not None
    )
    return float(sum(gaps) / max(len(labels), 1))
