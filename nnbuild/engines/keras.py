"""The reference engine: Keras itself."""

from typing import Any

import numpy as np

from nnbuild.engines import Logits, Pixels


class KerasEngine:
    """The reference: one compiled function of a Keras model, batches of one size.

    Args:
        model: pixels in, logits out.
        batch_size: images per call; a smaller batch is filled up with zeros, so that one trace serves all.
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
        """See `Engine`."""
        missing = self._batch_size - len(images)
        filled = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing > 0 else images
        logits: Logits = self._infer(self._constant(filled)).numpy()
        return logits[: len(images)].astype(np.float32, copy=False)
