"""What every engine promises."""

from typing import Protocol

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
