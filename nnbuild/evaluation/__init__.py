"""Metrics, calibration, prediction sets, significance tests, drift and the promotion rule."""

from nnbuild.evaluation.calibration import confidence_threshold, fit_temperature
from nnbuild.evaluation.metrics import (
    Bin,
    MetricValue,
    calibration_bins,
    calibration_error,
    confusion_counts,
    evaluate,
)
from nnbuild.evaluation.significance import Spread, mean_confidence_interval, wilson_interval

__all__ = [
    "Bin",
    "MetricValue",
    "Spread",
    "calibration_bins",
    "calibration_error",
    "confidence_threshold",
    "confusion_counts",
    "evaluate",
    "fit_temperature",
    "mean_confidence_interval",
    "wilson_interval",
]
