"""Evaluation: metrics, confusion, calibration."""

from nnbuild.evaluation.metrics import (
    Bin,
    Figure,
    calibration_bins,
    calibration_error,
    confusion_counts,
    evaluate,
)

__all__ = ["Bin", "Figure", "calibration_bins", "calibration_error", "confusion_counts", "evaluate"]
