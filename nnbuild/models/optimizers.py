"""Optimizers and schedules that Keras lacks: Muon for convolutions, and learning rate schedules."""

import math
from collections.abc import Sequence
from typing import Any

from nnbuild.config.sections import TrainingConfig
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

    It orthogonalizes the momentum of hidden kernels: Jordan et al., "Muon: an optimizer for hidden
    layers in neural networks" (2024). Keras has a Muon too, which leaves the kernels of
    convolutions, and so a whole convolutional network, to Adam.

    Hidden kernels are those whose inputs are not pixels and whose outputs are not logits. Their
    steps have the usual root mean square of Adam's, so that both can share the learning rate.

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
    """Return the hidden kernels, from first to last.

    These are all kernels but the last one, whose outputs are logits, those of pixels, and those
    with a single output.
    """
    kernels = [each for each in variables if len(each.shape) > 1]
    return [
        each for each in kernels[:-1] if each.shape[-2] > _MAX_PIXEL_CHANNELS and each.shape[-1] > 1
    ]


@keras.saving.register_keras_serializable("nnbuild")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Schedule that rises to a peak and falls to nearly 0, both along half a cosine.

    As in Smith and Topin, "Super-convergence" (arXiv 1708.07120).

    Attributes:
        peak: Highest learning rate.
        steps: Number of steps of the whole fit.
        rising: Fraction of the steps before the peak.
    """

    def __init__(self, peak: float, steps: int, rising: float = 0.25) -> None:
        super().__init__()
        self.peak, self.steps, self.rising = peak, steps, rising

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the learning rate of a step, a float32 scalar."""
        position = tf.cast(step, tf.float32) / float(max(self.steps, 1))
        climb = tf.minimum(position / self.rising, 1.0)
        descent = tf.clip_by_value((position - self.rising) / (1 - self.rising), 0.0, 1.0)
        up = (1 - tf.cos(math.pi * climb)) / 2
        down = (1 + tf.cos(math.pi * descent)) / 2
        return self.peak * tf.maximum(tf.where(position < self.rising, up, down), 1e-4)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments for `keras.saving` to build it again."""
        return {"peak": self.peak, "steps": self.steps, "rising": self.rising}


@keras.saving.register_keras_serializable("nnbuild")
class FineTuning(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Schedule that lowers another one from the step at which a backbone begins to be trained.

    Attributes:
        rate: Learning rate, or its schedule over the whole fit.
        first: First step with the lower rate.
        factor: Factor of the learning rate from that step.
    """

    def __init__(self, rate: Any, first: int, factor: float) -> None:
        super().__init__()
        self.rate, self.first, self.factor = rate, first, factor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the learning rate of a step, a float32 scalar."""
        rate = tf.cast(self.rate(step) if callable(self.rate) else self.rate, tf.float32)
        return rate * tf.where(tf.cast(step, tf.int64) < self.first, 1.0, self.factor)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments for `keras.saving` to build it again."""
        rate = keras.saving.serialize_keras_object(self.rate) if callable(self.rate) else self.rate
        return {"rate": rate, "first": self.first, "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FineTuning":
        """Return a schedule with the arguments of `get_config`."""
        rate = config["rate"]
        if isinstance(rate, dict):
            rate = keras.saving.deserialize_keras_object(rate)
        return cls(**{**config, "rate": rate})


def learning_rate(
    training: TrainingConfig, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate for the optimizer: a number, or a schedule over the whole fit."""
    rate = _rate(training, steps)
    if not training.freeze_epochs:
        return rate
    first = steps * training.freeze_epochs // int(training.epochs or 1)
    factor = float(training.fine_tuning_rate or 0) / float(training.learning_rate or 1)
    return FineTuning(rate, first, factor)


def _rate(
    training: TrainingConfig, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    if training.lr_schedule == "one-cycle":
        return OneCycle(float(training.learning_rate or 0), steps)
    if training.lr_schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(training.learning_rate, steps)
    return training.learning_rate
