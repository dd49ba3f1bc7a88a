"""Training: the order of the examples, compiled steps, checkpoints, and the fit that uses them."""

from nnbuild.training.checkpoint import Checkpoint, Checkpoints
from nnbuild.training.context import FitContext, Fitted
from nnbuild.training.trainer import fit

__all__ = ["Checkpoint", "Checkpoints", "FitContext", "Fitted", "fit"]
