"""What a dataset is, once it has been read: images, labels, and the names of the classes."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes:
        images: uint8, shape (n, height, width, channels), 0 to 255, channels 1 or 3.
        labels: int16, shape (n,), 0 to classes - 1.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of the same classes.

    Attributes:
        name: lower-case letters, digits, dots and dashes: `mnist`, or made from the path.
        train: what is trained and validated on.
        test: what is only evaluated on.
        class_names: one for each class, in the order of the labels.
        source: where it was read from, for the manifest.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    source: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height and width in pixels, and channels."""
        height, width, channels = self.train.images.shape[1:]
        return int(height), int(width), int(channels)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """sha256 of the payload, 64 hexadecimal digits: the same for the same data in any packaging."""
        payload = hashlib.sha256()
        payload.update("\0".join(self.class_names).encode())
        for split in (self.train, self.test):
            payload.update(str(split.images.shape).encode())
            payload.update(np.ascontiguousarray(split.images).data)
            payload.update(np.ascontiguousarray(split.labels.astype("<i2")).data)
        return payload.hexdigest()
