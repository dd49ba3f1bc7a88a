"""Evaluation: metrics, confusion, calibration."""

from nnbuild.evaluation.metrics import (
    Bin,
    Figure,
    calibration_bins,
    calibration_error,
    confusion_counts,
    evaluate,
)
from nnbuild.evaluation.spread import Spread, spread
from nnbuild.evaluation.temperature import fit_temperature

__all__ = [
    "Bin",
    "Figure",
    "Spread",
    "calibration_bins",
    "calibration_error",
    "confusion_counts",
    "evaluate",
    "fit_temperature",
    "spread",
]
