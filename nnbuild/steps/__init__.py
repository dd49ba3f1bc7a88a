"""The steps of a run, in the order of the recipe. Each can be called again: what it has done, it recalls.

A step takes the run and what earlier steps returned, leaves its files in the run's staging folder, and
returns small values. Nothing reaches a reader before `nnbuild.committing`. The steps that need TensorFlow are
imported when they are first asked for: loading and committing do without.
"""

from typing import TYPE_CHECKING, Any

from nnbuild.steps.data import check_data, load_data, read_data, staged_dataset
from nnbuild.steps.gating import answered, decide, still_holds, withdraw
from nnbuild.steps.once import once, staged_table
from nnbuild.steps.progress import epochs_on_disk, has_checkpoints, is_fitted

if TYPE_CHECKING:
    from nnbuild.steps.calibrating import calibrate_model
    from nnbuild.steps.exporting import export_model
    from nnbuild.steps.measure import evaluate_model, score_test_set
    from nnbuild.steps.network import build_model, compile_model, fit_model, persist_history
    from nnbuild.steps.reporting import confusion_picture, curve_picture

__all__ = [
    "answered",
    "build_model",
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
    "is_fitted",
    "load_data",
    "once",
    "persist_history",
    "read_data",
    "score_test_set",
    "staged_dataset",
    "staged_table",
    "still_holds",
    "withdraw",
]


def __getattr__(name: str) -> Any:
    from nnbuild.lazy import find

    return find(
        name,
        {
            "nnbuild.steps.network": (
                "build_model",
                "compile_model",
                "fit_model",
                "persist_history",
            ),
            "nnbuild.steps.exporting": ("export_model",),
            "nnbuild.steps.calibrating": ("calibrate_model",),
            "nnbuild.steps.reporting": ("confusion_picture", "curve_picture"),
            "nnbuild.steps.measure": ("evaluate_model", "score_test_set"),
        },
        __name__,
    )
