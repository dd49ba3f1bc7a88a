"""Training: the order of the examples, compiled steps, checkpoints, and the fit that uses them.

The names are imported when they are first used: the history of a run is read without TensorFlow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnbuild.training.checkpoint import Checkpoint, Checkpoints
    from nnbuild.training.trainer import FitContext, Fitted, fit

__all__ = ["Checkpoint", "Checkpoints", "FitContext", "Fitted", "fit"]

_MODULES = {
    "nnbuild.training.checkpoint": ("Checkpoint", "Checkpoints"),
    "nnbuild.training.trainer": ("FitContext", "Fitted", "fit"),
}


def __getattr__(name: str) -> Any:
    from nnbuild.runtime.lazy_imports import attach

    return attach(name, _MODULES, __name__)
