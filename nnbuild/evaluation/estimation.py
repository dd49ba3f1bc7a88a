"""Estimate the accuracy of a model: from labels with an interval, and from confidence alone."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Z = 1.96  # of a 95 % interval


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction (Wilson 1927, doi 10.1080/01621459.1927.10502953).

    Args:
        share: The fraction, from 0 to 1.
        count: Number of examples; the interval is 0 to 1 without any.
    """
    if count == 0:
        return 0.0, 1.0
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = (
        _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    )
    return min(max(0.0, middle - half), share), max(min(1.0, middle + half), share)


def confidence_threshold(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> float:
    """Return the confidence above which as large a share of examples is as is correct.

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
