"""The reference engine: Keras."""

from typing import Any

import numpy as np

from nnbuild.engines import Logits, Pixels


class KerasEngine:
    """Engine that calls one compiled function of a Keras model, with batches of one size.

    Args:
        model: Keras model from pixels to logits.
        batch_size: Images per call; smaller batches are padded with zeros, so that the model is
            traced only once.
    """

    name = "keras"

    def __init__(self, model: Any, batch_size: int) -> None:
        from nnbuild.runtime.tensorflow import tf

        self._batch_size = batch_size
        self._constant = tf.constant
        self._infer = tf.function(
            lambda images: model(images, training=False), reduce_retracing=True
        )

    def logits(self, images: Pixels) -> Logits:
        """Compute the logits of a batch, see `Engine`."""
        missing = self._batch_size - len(images)
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing > 0 else images
        logits: Logits = self._infer(self._constant(padded)).numpy()
        return logits[: len(images)].astype(np.float32, copy=False)
