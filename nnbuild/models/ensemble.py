"""Several networks as one: the mean of their log-probabilities, which are logits themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnbuild.config.sections import TrainingConfig
from nnbuild.models.architectures import Shape
from nnbuild.models.compile import loss_of, metrics_of
from nnbuild.runtime.tensorflow import keras

layers = keras.layers


def member_seed(seed: int, number: int) -> int:
    """The seed of an ensemble's member; the first has the run's own.

    Args:
        seed: of the run.
        number: of the member, from 0.

    Returns:
        A number from 0 to 2³¹ - 1.
    """
    if number == 0:
        return seed
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def combine(members: Sequence[Any], training: TrainingConfig, shape: Shape) -> Any:
    """One model of several: the mean over the members of log-softmax of their logits.

    Softmax of what comes out is the normalised geometric mean of the members' probabilities, a logarithmic opinion
    pool (Heskes, "Selecting weighting factors in logarithmic opinion pools", NIPS 1997).

    Args:
        members: uncompiled float32 models, uint8 pixels in and logits out. They are renamed in place and belong to
            the ensemble from then on, which is not trained further.
        training: of the config, for the loss and the metrics.
        shape: of an image: height and width in pixels, and channels.

    Returns:
        A compiled model: uint8 pixels of shape (n, *shape) in; float32 logits of shape (n, classes) out, none above 0.
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
