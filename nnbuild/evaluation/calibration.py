"""Calibrate probabilities by temperature scaling (Guo et al. 2017, arXiv 1706.04599)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.logits import log_softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.integer[Any]]) -> float:
    """Find the temperature T that minimises the negative log-likelihood of softmax(logits / T).

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
