"""What a dataset is, once it has been read: images, labels, and the names of the classes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """Training, test and, if the source has one, validation split of the same classes.

    Attributes:
        name: Lower-case letters, digits, dots and dashes: `mnist`, or made from the path.
        train: Images to train on; without a validation split, some are held out for validation.
        test: Images for evaluation only.
        class_names: One for each class, in the order of the labels.
        source: Where it was read from, for the manifest.
        validation: Images to validate on; None if the source has no such split.
        pixel_scales: How the pixels of each split were read, by its name: `float32 from 0 to 1`.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    source: str
    validation: Split | None = None
    pixel_scales: Mapping[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name: `train`, `test`, and `validation` if there is one."""
        found = {"train": self.train, "test": self.test}
        return found if self.validation is None else found | {"validation": self.validation}

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
        for split in self.splits.values():
            payload.update(str(split.images.shape).encode())
            payload.update(np.ascontiguousarray(split.images).data)
            payload.update(np.ascontiguousarray(split.labels.astype("<i2")).data)
        return payload.hexdigest()
