"""In which floats the layers compute while a network is trained. What is kept of it afterwards computes in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnbuild.backend import keras


@contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Layers that are made here compute in a policy of Keras, unless they name their own dtype.

    Args:
        policy: float32, mixed_bfloat16 or mixed_float16; under the last two the weights stay float32.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def with_scaled_loss(optimizer: Any, policy: str) -> Any:
    """The optimizer, which under mixed_float16 scales the loss: small gradients would be 0 in float16."""
    return (
        keras.optimizers.LossScaleOptimizer(optimizer) if policy == "mixed_float16" else optimizer
    )
