"""Muon: the momentum of a hidden kernel is made orthogonal before it is taken as the step; all else is left to Adam.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Keras has a Muon as well, which leaves
the kernels of convolutions, and so all of a convolutional network, to Adam.
"""

from collections.abc import Sequence
from typing import Any

from nnbuild.runtime.tensorflow import keras, tf

_PIXEL_CHANNELS = 4  # at most: grey, RGB, and with transparency
_ROUNDS = 5
_QUINTIC = (
    3.4445,
    -4.7750,
    2.0315,
)  # of Jordan et al.: five rounds bring singular values to between 0.7 and 1.2
_LIKE_ADAM = 0.2  # of Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982): how long Adam's steps are


@keras.saving.register_keras_serializable("nnbuild")
class Muon(keras.optimizers.Adam):  # type: ignore[misc]
    """Adam, but for the hidden kernels: those that take more than the channels of pixels, and give no logits.

    A step of a hidden kernel is as long, per weight, as one of Adam's usually is, so they share the learning rate.

    Attributes:
        momentum: of the hidden kernels' gradients, from 0 to 1.
    """

    def __init__(self, learning_rate: Any = 0.001, momentum: float = 0.95, **adam: Any) -> None:
        super().__init__(learning_rate, **adam)
        self.momentum = momentum

    def build(self, variables: Sequence[Any]) -> None:
        """Make the optimizer's variables.

        Args:
            variables: that will be trained, in the order of the layers.
        """
        if self.built:
            return
        super().build(variables)
        hidden = {id(variable) for variable in _hidden_kernels(variables)}
        # A list, and no dict: TensorFlow's export of a compiled model follows it, and takes no numbers for keys.
        self._kernel_momentums = [
            self.add_variable_from_reference(variable, name="kernel_momentum")
            if id(variable) in hidden
            else None
            for variable in variables
        ]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Change a variable and its momentum in place, by its gradient.

        Args:
            gradient: of the loss.
            variable: to change.
            learning_rate: scalar.
        """
        average = self._kernel_momentums[self._get_variable_index(variable)]
        if average is None:
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = tf.cast(gradient, variable.dtype)
        average.assign(self.momentum * average + gradient)
        direction = tf.reshape(
            gradient + self.momentum * average, (-1, variable.shape[-1])
        )  # Nesterov's
        scale = _LIKE_ADAM * max(direction.shape) ** 0.5
        step = tf.cast(learning_rate, variable.dtype) * scale * orthogonal(direction)
        variable.assign_sub(tf.reshape(step, variable.shape))

    def get_config(self) -> dict[str, Any]:
        """What `keras.saving` needs to build it again."""
        return {**super().get_config(), "momentum": self.momentum}


def orthogonal(matrix: Any) -> Any:
    """About the nearest matrix whose singular values are all 1, by Newton-Schulz rounds.

    A round takes X to aX + b(XXᵀ)X + c(XXᵀ)²X. All of them together are P·X for a P that follows from XXᵀ alone, so the
    rounds are made on that, which is the smaller by as much as X is oblong.

    Args:
        matrix: float32, shape (n, m), known.

    Returns:
        The same shape; singular values between about 0.7 and 1.2, but for those that were next to nothing.
    """
    is_wide = matrix.shape[0] < matrix.shape[1]
    wide = matrix if is_wide else tf.transpose(matrix)
    wide /= tf.norm(wide) + 1e-7
    gram = tf.matmul(wide, wide, transpose_b=True)
    product = identity = tf.eye(gram.shape[0], dtype=gram.dtype)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        factor = a * identity + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    found = product @ wide
    return found if is_wide else tf.transpose(found)


def _hidden_kernels(variables: Sequence[Any]) -> list[Any]:
    """The kernels that take more than pixels' channels and give more than one, without the last, which gives logits."""
    kernels = [each for each in variables if len(each.shape) > 1]
    return [
        each for each in kernels[:-1] if each.shape[-2] > _PIXEL_CHANNELS and each.shape[-1] > 1
    ]
