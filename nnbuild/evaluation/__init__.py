"""Evaluation: metrics, confusion, calibration."""

from nnbuild.evaluation.calibration import fit_temperature
from nnbuild.evaluation.metrics import (
    Bin,
    Figure,
    calibration_bins,
    calibration_error,
    confusion_counts,
    evaluate,
)
from nnbuild.evaluation.significance import Spread, spread

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
