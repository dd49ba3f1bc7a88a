"""Training: the order of examples, the compiled steps, the checkpoints, and the fit that ties them together."""

from nnbuild.training.checkpoint import Checkpoint, Checkpoints
from nnbuild.training.trainer import FitContext, Fitted, fit

__all__ = ["Checkpoint", "Checkpoints", "FitContext", "Fitted", "fit"]
