"""Combine networks into an ensemble: the mean of their log-probabilities, which are logits too."""

from collections.abc import Sequence

import numpy as np

from nnbuild.config.sections import TrainingConfig
from nnbuild.models.architectures import Shape
from nnbuild.models.compile import loss_of, metrics_of
from nnbuild.runtime.tensorflow import keras

layers = keras.layers


def member_seed(seed: int, number: int) -> int:
    """Return the seed of an ensemble's member; the first has the run's own.

    Args:
        seed: Seed of the run.
        number: Number of the member, from 0.

    Returns:
        Seed from 0 to 2³¹ - 1.
    """
    if number == 0:
        return seed
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def combine(members: Sequence[keras.Model], training: TrainingConfig, shape: Shape) -> keras.Model:
    """Combine models into one that averages the log-softmax of their logits.

    Softmax of its output is the normalized geometric mean of the members' probabilities, a
    logarithmic opinion pool (Heskes, "Selecting weighting factors in logarithmic opinion pools",
    NIPS 1997).

    Args:
        members: Uncompiled float32 models from uint8 pixels to logits. They are renamed in place
            and become part of the ensemble, which is not trained further.
        training: Resolved settings, for the loss and the metrics.
        shape: Height and width of an image in pixels, and number of channels.

    Returns:
        Compiled model from uint8 pixels of shape (n, *shape) to float32 logits of shape
        (n, classes), of which none is above 0.
    """
    pixels = keras.Input(shape, dtype="uint8", name="pixels")
    pooled = []
    for number, member in enumerate(members):
        member.name = f"member_{number}"
        member.trainable = False
        log_probabilities = layers.Activation(
            "log_softmax", dtype="float32", name=f"log_probabilities_{number}"
        )
        pooled.append(log_probabilities(member(pixels)))
    model = keras.Model(
        pixels, layers.Average(dtype="float32", name="logits")(pooled), name="ensemble"
    )
    model.compile(
        optimizer=keras.optimizers.SGD(), loss=loss_of(training), metrics=metrics_of(training)
    )
    return model
