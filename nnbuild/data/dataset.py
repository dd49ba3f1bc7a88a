"""A dataset in memory, and the test split that is held out if its source has none."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.data import pixels

Digests = NDArray[np.bytes_]
"""128-bit digests, dtype S16, shape (n,)."""

DIGEST_BYTES = 16

TEST_FRACTION = 1 / 6


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes:
        images: uint8, shape (n, height, width, channels), 0 to 255, channels 1 or 3.
        labels: int16, shape (n,), 0 to classes - 1.
        kept: Columns of the source that describe the images, texts; None if none are kept.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int16]
    kept: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: NDArray[Any] | slice) -> "Split":
        """Return some of the examples.

        Args:
            rows: Numbers of the rows, a bool for each row, or a slice.
        """
        kept = self.kept
        if kept is not None:
            numbers = np.arange(len(self))[rows]
            kept = kept.take(pa.array(numbers))
        selected = Split(pixels.select(self.images, rows), self.labels[rows], kept)
        if "image_digests" in vars(self):  # computed before: it takes a pass over all pixels
            vars(selected)["image_digests"] = self.image_digests[rows]
        return selected

    @cached_property
    def image_digests(self) -> Digests:
        """Return the digest of the pixels of each image, equal for equal images."""
        rows = (np.ascontiguousarray(image).reshape(-1) for image in np.asarray(self.images))
        digests = bytearray()
        for row in rows:
            digests += hashlib.blake2b(row.data, digest_size=DIGEST_BYTES).digest()
        return np.frombuffer(bytes(digests), f"S{DIGEST_BYTES}")

    @cached_property
    def content_digest(self) -> str:
        """Return the SHA-256 of pixels and labels, which does not depend on the file format."""
        payload = hashlib.sha256()
        for part in _content(self):
            payload.update(part)
        return payload.hexdigest()


def _content(split: Split) -> Iterator[bytes | memoryview]:
    """Yield what identifies a split: shape, pixels and labels."""
    yield str(split.images.shape).encode()
    yield np.ascontiguousarray(split.images).data
    yield np.ascontiguousarray(split.labels.astype("<i2")).data


def _kept_content(split: Split) -> Iterator[bytes]:
    """Yield what identifies the kept columns; nothing if there are none."""
    if split.kept is not None:
        yield json.dumps(split.kept.to_pydict()).encode()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, test and optional validation split of the same classes.

    Attributes:
        name: Name of lower-case letters, digits, dots and dashes: `mnist`, or made from the path.
        train: Training split; without a validation split, part of it is used for validation.
        test: Test split, for evaluation only.
        class_names: Name of each class, in the order of the labels.
        source: Description of its origin, for the manifest.
        validation: Validation split; None if the source has none.
        pixel_scales: Type and scale of the source's pixels by split, as `float32 from 0 to 1`.
        held_out: Whether the source has no test split, so that `hold_out` made it.
        unreadable: Message about each picture of the source that was skipped as unreadable.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    source: str
    validation: Split | None = None
    pixel_scales: Mapping[str, str] = field(default_factory=dict)
    held_out: bool = False
    unreadable: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """Return the splits by name: `train`, `test`, and `validation` if there is one."""
        splits = {"train": self.train, "test": self.test}
        return splits if self.validation is None else splits | {"validation": self.validation}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height and width in pixels, and channels."""
        height, width, channels = self.train.images.shape[1:]
        return int(height), int(width), int(channels)

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the content, which does not depend on the file format."""
        payload = hashlib.sha256()
        payload.update("\0".join(self.class_names).encode())
        for split in self.splits.values():
            for part in (*_content(split), *_kept_content(split)):
                payload.update(part)
        return payload.hexdigest()


def hold_out(split: Split, fraction: float = TEST_FRACTION) -> tuple[Split, Split]:
    """Split off the images whose digest is below a fixed threshold.

    Whether an image is held out depends on its pixels alone: an image that was held out once is
    held out for ever, whatever data arrive later, and copies of an image stay together. No rule
    with that property can also promise every class a test image: of n different images of a class,
    none is held out with probability (1 - fraction)^n.

    Args:
        split: All examples.
        fraction: Expected fraction to hold out, above 0 and below 1. The images that a smaller
            fraction holds out are among those of a larger one.

    Returns:
        Training and test split, each in the order of the rows; either may be empty.
    """
    # Digests are uniform, so the first 64 of their 128 bits are a uniform number.
    heads = np.frombuffer(split.image_digests.tobytes(), "<u8")[::2]
    test = heads < np.uint64(round(2**64 * fraction))
    return split.select(~test), split.select(test)
