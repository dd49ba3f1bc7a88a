"""Temperature scaling: one number that makes probabilities mean what they say (Guo et al. 2017, arXiv 1706.04599)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.logits import log_softmax

LEAST, MOST = 0.05, 20.0


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.integer[Any]]) -> float:
    """The temperature T that minimises the mean negative log-likelihood of softmax(logits / T).

    The loss is convex in 1 / T, so there is one minimum; where it lies beyond the bounds, because every example is
    right or next to none is, the bound is given.

    Args:
        logits: float, shape (n, classes), finite; of examples that the network was not trained on.
        labels: shape (n,), their true classes.

    Returns:
        Between 0.05 and 20. Above 1 the network was too sure of itself.
    """
    from scipy.optimize import minimize_scalar  # half a second, and only here

    wide, each = logits.astype(np.float64), np.arange(len(labels))

    def loss(logarithm: float) -> float:
        return float(-log_softmax(wide, temperature=float(np.exp(logarithm)))[each, labels].mean())

    found = minimize_scalar(
        loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))
