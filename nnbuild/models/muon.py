"""Muon: orthogonalize the momentum of hidden kernels, and leave all other weights to Adam.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Keras has a Muon
too, which leaves the kernels of convolutions, and so a whole convolutional network, to Adam.
"""

from collections.abc import Sequence
from typing import Any

from nnbuild.runtime.tensorflow import keras, tf

_MAX_PIXEL_CHANNELS = 4  # RGB with transparency
_ROUNDS = 5
# Jordan et al.: five rounds bring the singular values to between 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
# The root mean square of Adam's steps: Liu et al., "Muon is scalable for LLM training"
# (arXiv 2502.16982).
_ADAM_RMS = 0.2


@keras.saving.register_keras_serializable("nnbuild")
class Muon(keras.optimizers.Adam):  # type: ignore[misc]
    """Optimizer that is Muon for hidden kernels, and Adam for all other weights.

    Hidden kernels are those whose inputs are not pixels and whose outputs are not logits. Their
    steps are as long per weight as Adam's usually are, so that both share the learning rate.

    Attributes:
        momentum: Momentum of the hidden kernels' gradients, from 0 to 1.
    """

    def __init__(self, learning_rate: Any = 0.001, momentum: float = 0.95, **adam: Any) -> None:
        super().__init__(learning_rate, **adam)
        self.momentum = momentum

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the optimizer's variables.

        Args:
            variables: Trainable variables, in the order of the layers.
        """
        if self.built:
            return
        super().build(variables)
        hidden = {id(variable) for variable in _hidden_kernels(variables)}
        # Not a dict: TensorFlow's export of a compiled model does not accept numbers as keys.
        self._kernel_momentums = [
            self.add_variable_from_reference(variable, name="kernel_momentum")
            if id(variable) in hidden
            else None
            for variable in variables
        ]

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Update a variable and its momentum in place.

        Args:
            gradient: Gradient of the loss.
            variable: Variable to update.
            learning_rate: Scalar learning rate.
        """
        average = self._kernel_momentums[self._get_variable_index(variable)]
        if average is None:
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = tf.cast(gradient, variable.dtype)
        average.assign(self.momentum * average + gradient)
        nesterov = gradient + self.momentum * average
        direction = tf.reshape(nesterov, (-1, variable.shape[-1]))
        scale = _ADAM_RMS * max(direction.shape) ** 0.5
        step = tf.cast(learning_rate, variable.dtype) * scale * orthogonal(direction)
        variable.assign_sub(tf.reshape(step, variable.shape))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments for `keras.saving` to build it again."""
        return {**super().get_config(), "momentum": self.momentum}


def orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """Return about the nearest matrix with singular values of 1, by Newton-Schulz iteration.

    A round maps X to aX + b(XXᵀ)X + c(XXᵀ)²X. All rounds together are P·X, where P depends on XXᵀ
    alone. They are computed on XXᵀ, which is smaller than X unless X is square.

    Args:
        matrix: float32 matrix of static shape (n, m).

    Returns:
        Matrix of the same shape, with singular values between about 0.7 and 1.2, except those that
        were close to 0.
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
    result = product @ wide
    return result if is_wide else tf.transpose(result)


def _hidden_kernels(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Return the kernels but the last one, of logits, and those of pixels or one output."""
    kernels = [each for each in variables if len(each.shape) > 1]
    return [
        each for each in kernels[:-1] if each.shape[-2] > _MAX_PIXEL_CHANNELS and each.shape[-1] > 1
    ]
