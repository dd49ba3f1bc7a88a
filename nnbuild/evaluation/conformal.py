"""Prediction sets that contain the true class at a stated rate: split conformal prediction.

The nonconformity of an image is 1 minus the probability of its true class (LAC, the least ambiguous
set-valued classifier: Sadinle, Lei & Wasserman, JASA 2019, arXiv 1609.00451). A set has all classes
whose nonconformity is at most a quantile of the validation images, with the correction for finite
samples of Angelopoulos & Bates 2023 (arXiv 2107.07511), section 1. If the scored images are
exchangeable with the validation images, a set contains the true class with at least the stated
probability, on average over all images: not for each class, and not after a shift.

Probabilities are compared rather than nonconformities, because 1 - p has fewer digits near p = 1.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.errors import ConfigError

CONFORMAL = "conformal.parquet"
"""File of a run with the probabilities of the true classes of its validation images."""

_SCHEMA = pa.schema(
    [
        pa.field(
            name,
            pa.float32(),
            nullable=False,
            metadata={"description": f"Probability of the true class, {temperature}, ascending"},
        )
        for name, temperature in (
            ("plain", "at temperature 1"),
            ("calibrated", "at the temperature of the run"),
        )
    ]
)

Probabilities = NDArray[Any]


def validation_table(plain: Probabilities, calibrated: Probabilities) -> pa.Table:
    """Return the content of `CONFORMAL`.

    Args:
        plain: Probability of the true class of each validation image, float32, shape (n,).
        calibrated: The same with the calibrated probabilities.
    """
    columns = [pa.array(np.sort(each)) for each in (plain, calibrated)]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def probability_threshold(of_true_class: Probabilities, coverage: float) -> float:
    """Return the smallest probability of the classes in a prediction set.

    Args:
        of_true_class: Probability of the true class of each validation image, shape (n,).
        coverage: Probability with which a set contains the true class, between 0 and 1.

    Returns:
        The probability with rank ⌈(n + 1) · coverage⌉ from the largest.

    Raises:
        ConfigError: There are too few validation images for this coverage.
    """
    images = len(of_true_class)
    exact = Fraction(repr(float(coverage)))  # so that 20 · 0.95 is 19
    rank = math.ceil((images + 1) * exact)
    if rank > images:
        needed = math.ceil(exact / (1 - exact))
        raise ConfigError(
            f"coverage is {coverage:g}, which takes at least {needed:,} validation images, but the "
            f"run has {images:,}; lower coverage, or train with a larger "
            "training.validation_fraction",
            setting="coverage",
            value=coverage,
        )
    return float(np.sort(of_true_class)[images - rank])


def prediction_sets(probabilities: Probabilities, threshold: float) -> NDArray[np.bool_]:
    """Return which classes are in the set of each image; a set can be empty.

    Args:
        probabilities: Probabilities, float32, any shape.
        threshold: As returned by `probability_threshold`.
    """
    return probabilities >= np.float32(threshold)
