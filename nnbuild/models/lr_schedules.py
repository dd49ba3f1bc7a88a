"""Learning rates as functions of the step. They keep nothing, so a resumed run is at the same rate."""

import math
from typing import Any

from nnbuild.config.sections import TrainingConfig
from nnbuild.runtime.tensorflow import keras, tf


@keras.saving.register_keras_serializable("nnbuild")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Rises to the peak over the first part of the steps and falls to nearly nothing over the rest.

    Both ways along half a cosine, as in Smith, "Super-convergence" (arXiv 1708.07120).

    Attributes:
        peak: the highest learning rate.
        steps: of the whole fit.
        rising: share of the steps before the peak.
    """

    def __init__(self, peak: float, steps: int, rising: float = 0.25) -> None:
        super().__init__()
        self.peak, self.steps, self.rising = peak, steps, rising

    def __call__(self, step: Any) -> Any:
        """The learning rate of a step: float32 scalar."""
        position = tf.cast(step, tf.float32) / float(max(self.steps, 1))
        climb = tf.minimum(position / self.rising, 1.0)
        descent = tf.clip_by_value((position - self.rising) / (1 - self.rising), 0.0, 1.0)
        up = (1 - tf.cos(math.pi * climb)) / 2
        down = (1 + tf.cos(math.pi * descent)) / 2
        return self.peak * tf.maximum(tf.where(position < self.rising, up, down), 1e-4)

    def get_config(self) -> dict[str, Any]:
        """What `keras.saving` needs to build it again."""
        return {"peak": self.peak, "steps": self.steps, "rising": self.rising}


def learning_rate(training: TrainingConfig, steps: int) -> Any:
    """What the optimizer is given: a number, or a schedule over all the steps of the fit."""
    if training.schedule == "one-cycle":
        return OneCycle(float(training.learning_rate or 0), steps)
    if training.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(training.learning_rate, steps)
    return training.learning_rate
