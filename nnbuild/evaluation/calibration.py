"""Calibrate probabilities, and choose the threshold by which they estimate accuracy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.logits import log_softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.integer[Any]]) -> float:
    """Find the temperature T that minimises the negative log-likelihood of softmax(logits / T).

    This is temperature scaling (Guo et al. 2017, arXiv 1706.04599).

    The loss is convex in 1 / T, so there is one minimum. If it is beyond the bounds, because all
    examples or almost none are classified correctly, the bound is returned.

    Args:
        logits: Finite logits of examples that were not used for training, float, shape
            (n, classes).
        labels: True classes, shape (n,).

    Returns:
        Temperature between 0.05 and 20; above 1 the model was overconfident.
    """
    from scipy.optimize import minimize_scalar  # imported here, since it takes half a second

    wide, rows = logits.astype(np.float64), np.arange(len(labels))

    def loss(logarithm: float) -> float:
        return float(-log_softmax(wide, temperature=float(np.exp(logarithm)))[rows, labels].mean())

    result = minimize_scalar(
        loss,
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(result.x))


def confidence_threshold(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> float:
    """Return the confidence that as large a fraction of examples exceeds as is correct.

    The share of other examples at or above this threshold estimates the accuracy on them: average
    thresholded confidence, Garg et al. 2022 (arXiv 2201.04234), equation 1.

    Args:
        confidence: Largest probability of each validation example, float, shape (n,), n of 1 or
            more.
        correct: Whether each is classified correctly, bool, shape (n,).
    """
    errors = len(correct) - int(correct.sum())
    if errors == len(correct):
        return float(np.nextafter(confidence.max(), np.inf))
    return float(np.sort(confidence)[errors])
