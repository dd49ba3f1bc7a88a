"""The logits contract, and the only softmax in the project."""

from nnbuild.logits.contract import (
    check_head,
    check_logits,
    check_loss,
    check_model,
    check_output,
    refuse_probabilities,
)
from nnbuild.logits.softmax import energy, log_softmax, predict, softmax

__all__ = [
    "check_head",
    "check_logits",
    "check_loss",
    "check_model",
    "check_output",
    "energy",
    "log_softmax",
    "predict",
    "refuse_probabilities",
    "softmax",
]
