"""Provide the images for the steps of a compiled loop: all at once, or read a block ahead.

Both sources give a step the same rows in the same order, so a fit learns the same from both.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.dataset import Split
from nnbuild.data.pixels import MappedPixels
from nnbuild.runtime.tensorflow import tf

_BLOCK_BYTES = 16 << 20

AsTargets = Callable[[tf.Tensor], tf.Tensor]
"""Function that turns int32 labels, shape (n,), into the targets of the loss."""


Examples = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""Images, uint8, shape (n, height, width, channels); their targets; and the int32 row of each
example in these, a step after another."""


class Block(NamedTuple):
    """Images for some steps in a row.

    Attributes:
        examples: Images, targets and rows.
        first: Step of an epoch that takes the first of these rows.
        last: Step after the last one.
    """

    examples: Examples
    first: int
    last: int

    def specs(self) -> tuple[tf.TensorSpec, ...]:
        """Return the types of images, targets and rows, for any number of them."""
        return tuple(tf.TensorSpec((None, *each.shape[1:]), each.dtype) for each in self.examples)


class ResidentImages:
    """Images in TensorFlow's memory, of which each step takes its rows.

    Args:
        split: Images and labels.
        batch_size: Images per step.
        as_targets: Function that makes the targets.
    """

    def __init__(self, split: Split, batch_size: int, as_targets: AsTargets) -> None:
        self._batch_size = batch_size
        self._images = tf.constant(split.images)
        self._targets = as_targets(tf.constant(split.labels.astype(np.int32)))

    def example(self) -> Block:
        """Return the first image."""
        return Block((self._images[:1], self._targets[:1], tf.constant([0])), 0, 1)

    def blocks(self, order: Any, first: int, last: int) -> Iterator[Block]:
        """Yield blocks with the images of some steps of an epoch.

        Args:
            order: int32 numbers of the rows of the epoch, in order.
            first: First step.
            last: Step after the last one.
        """
        rows = np.asarray(order, np.int32)[first * self._batch_size : last * self._batch_size]
        yield Block((self._images, self._targets, tf.constant(rows)), first, last)


class MappedImages:
    """Images in a mapped file, read a block at a time in a thread ahead of the steps.

    Args:
        split: Images, mapped, and labels.
        batch_size: Images per step.
        as_targets: Function that makes the targets.
    """

    def __init__(self, split: Split, batch_size: int, as_targets: AsTargets) -> None:
        if not isinstance(split.images, MappedPixels):
            raise TypeError(f"images of type {type(split.images).__name__}, expected MappedPixels")
        self._images, self._labels = split.images, split.labels.astype(np.int32)
        self._batch_size, self._as_targets = batch_size, as_targets
        self._steps = max(1, _BLOCK_BYTES // (batch_size * split.images[:1].nbytes))
        self._reader = ThreadPoolExecutor(1, "nnbuild-images")
        self._order: Any = None
        self._numbers: NDArray[np.int32] = np.empty(0, np.int32)
        self._waiting: dict[int, Future[Block]] = {}

    def example(self) -> Block:
        """Return the first image; see `ResidentImages.example`."""
        return self._read(np.zeros(1, np.int32), 0)

    def blocks(self, order: Any, first: int, last: int) -> Iterator[Block]:
        """Yield blocks with the images of some steps; see `ResidentImages.blocks`."""
        if order is not self._order:
            self._order, self._numbers = order, np.asarray(order, np.int32)
            self._waiting.clear()
        for number in range(first // self._steps, (last - 1) // self._steps + 1):
            for each in (number, number + 1):
                self._request(each)
            for each in [each for each in self._waiting if each < number]:
                del self._waiting[each]
            yield self._waiting[number].result()

    def _request(self, number: int) -> None:
        """Begin to read a block, if the epoch has it and it is not being read."""
        start = number * self._steps * self._batch_size
        rows = self._numbers[start : start + self._steps * self._batch_size]
        if len(rows) and number not in self._waiting:
            self._waiting[number] = self._reader.submit(self._read, rows, number * self._steps)

    def _read(self, rows: NDArray[np.int32], first: int) -> Block:
        # In the order of the file, which a disk reads faster than a random one.
        sorter = np.argsort(rows, kind="stable")
        numbers = rows[sorter]
        examples = (
            tf.convert_to_tensor(self._images.gather(numbers)),
            self._as_targets(tf.convert_to_tensor(self._labels[numbers])),
            tf.convert_to_tensor(np.argsort(sorter).astype(np.int32)),
        )
        return Block(examples, first, first + -(-len(rows) // self._batch_size))
