"""Training: the order of examples, the compiled steps, the checkpoints, and the fit that ties them together."""

from nnbuild.training.checkpoints import Checkpoint, Checkpoints
from nnbuild.training.fitting import Fitted, fit
from nnbuild.training.surroundings import Surroundings, Watch

__all__ = ["Checkpoint", "Checkpoints", "Fitted", "Surroundings", "Watch", "fit"]
