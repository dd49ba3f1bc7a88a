"""The moving average of the weights that an optimizer keeps (`training.ema`), in the place of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnbuild.backend import tf


@contextmanager
def averaged(model: Any) -> Iterator[None]:
    """Give a model the average of its weights for the length of a block, if its optimizer keeps one.

    What is validated and restored within the block is then what the fit would end with. Afterwards the
    weights are the same again to the last bit, which Keras's own `SwapEMAWeights` does not promise: it
    swaps by adding and subtracting.

    Args:
        model: Compiled model; it is changed in place.
    """
    optimizer = getattr(
        model.optimizer, "inner_optimizer", model.optimizer
    )  # a loss scale has one inside
    if not optimizer.use_ema:
        yield
        return
    weights = model.trainable_variables
    kept = [tf.identity(weight) for weight in weights]
    optimizer.finalize_variable_values(weights)
    try:
        yield
    finally:
        for weight, value in zip(weights, kept, strict=True):
            weight.assign(value)
