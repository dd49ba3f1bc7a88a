"""Training: the order of examples, the compiled steps, the checkpoints, and the fit that ties them together."""

from nnbuild.training.checkpoint import Checkpoint, Checkpoints
from nnbuild.training.trainer import Fitted, Surroundings, Watch, fit

__all__ = ["Checkpoint", "Checkpoints", "Fitted", "Surroundings", "Watch", "fit"]
