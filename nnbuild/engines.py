"""What turns images into logits, a batch at a time."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class Engine(Protocol):
    """Turns images into logits.

    Attributes:
        name: as it is written into tables.
    """

    name: str

    def logits(self, images: Pixels) -> Logits:
        """The logits of a batch.

        Args:
            images: uint8, shape (n, height, width, channels), n of 1 or more.

        Returns:
            float32, shape (n, classes), any real values.
        """


class KerasEngine:
    """The reference: one compiled function of a Keras model, batches of one size.

    Args:
        model: pixels in, logits out.
        batch_size: images per call; a smaller batch is filled up with zeros, so that one trace serves all.
    """

    name = "keras"

    def __init__(self, model: Any, batch_size: int) -> None:
        from nnbuild.backend import tf  # the other engines do without TensorFlow

        self._batch_size = batch_size
        self._constant = tf.constant
        self._infer = tf.function(lambda images: model(images, training=False), reduce_retracing=True)

    def logits(self, images: Pixels) -> Logits:
        """See `Engine`."""
        missing = self._batch_size - len(images)
        filled = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing > 0 else images
        logits: Logits = self._infer(self._constant(filled)).numpy()
        return logits[: len(images)].astype(np.float32, copy=False)
