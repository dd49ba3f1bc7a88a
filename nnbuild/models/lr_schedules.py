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
