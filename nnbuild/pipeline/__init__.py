"""The steps of a run, in the order of the recipe. Each can be called again: what it has done, it recalls.

A step takes the run and what earlier steps returned, leaves its files in the run's staging folder, and
returns small values. Nothing reaches a reader before `nnbuild.pipeline.commit`. The steps that need TensorFlow are
imported when they are first asked for: loading and committing do without.
"""

from typing import TYPE_CHECKING, Any

from nnbuild.pipeline.data import check_data, load_data, read_data, staged_dataset
from nnbuild.pipeline.promotion import decide, is_current, record_approval, revoke_decision
from nnbuild.pipeline.step import (
    cached_step,
    epochs_on_disk,
    has_checkpoints,
    is_fitted,
    staged_table,
)

if TYPE_CHECKING:
    from nnbuild.pipeline.evaluation import calibrate_model, evaluate_model, score_test_set
    from nnbuild.pipeline.export import export_model
    from nnbuild.pipeline.reporting import confusion_picture, curve_picture
    from nnbuild.pipeline.training import build_model, compile_model, fit_model, persist_history

__all__ = [
    "build_model",
    "cached_step",
    "calibrate_model",
    "check_data",
    "compile_model",
    "confusion_picture",
    "curve_picture",
    "decide",
    "epochs_on_disk",
    "evaluate_model",
    "export_model",
    "fit_model",
    "has_checkpoints",
    "is_current",
    "is_fitted",
    "load_data",
    "persist_history",
    "read_data",
    "record_approval",
    "revoke_decision",
    "score_test_set",
    "staged_dataset",
    "staged_table",
]


def __getattr__(name: str) -> Any:
    from nnbuild.runtime.lazy_imports import attach

    return attach(
        name,
        {
            "nnbuild.pipeline.training": (
                "build_model",
                "compile_model",
                "fit_model",
                "persist_history",
            ),
            "nnbuild.pipeline.export": ("export_model",),
            "nnbuild.pipeline.reporting": ("confusion_picture", "curve_picture"),
            "nnbuild.pipeline.evaluation": ("calibrate_model", "evaluate_model", "score_test_set"),
        },
        __name__,
    )
