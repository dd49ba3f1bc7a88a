"""Learning rate schedules. They depend on the step alone, so a resumed fit has the same rate."""

import math
from typing import Any

from nnbuild.config.sections import TrainingConfig
from nnbuild.runtime.tensorflow import keras, tf


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


def learning_rate(
    training: TrainingConfig, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate for the optimizer: a number, or a schedule over the whole fit."""
    if training.lr_schedule == "one-cycle":
        return OneCycle(float(training.learning_rate or 0), steps)
    if training.lr_schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(training.learning_rate, steps)
    return training.learning_rate
