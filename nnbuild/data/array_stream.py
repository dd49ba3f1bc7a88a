"""Read an array of images for scoring; see `nnbuild.data.streams.ImageStream`."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.data import pixel_scale
from nnbuild.data.arrays import with_channels
from nnbuild.data.file_states import FileStates
from nnbuild.data.pixels import chunks
from nnbuild.data.preprocessing import fit_images
from nnbuild.data.streams import (
    Batch,
    Identifier,
    InputChunk,
    RejectedRows,
    Rows,
    StreamOptions,
    batches_in,
    equal_chunks,
    raw_batch_rows,
    raw_part_rows,
    require_known_columns,
)
from nnbuild.errors import DataError

_CHUNK_ROWS = 65_536


class ArrayStream:
    """Images of one array, in memory or in a mapped file; see `ImageStream`.

    Args:
        address: Address of the file, as the user wrote it.
        images: Images of any numeric type, shape (n, height, width) or
            (n, height, width, channels).
        options: What to read, and for which network.

    Raises:
        DataError: The images do not have the shape that the network expects, or a column is
            requested.
    """

    def __init__(self, address: str, images: NDArray[Any], options: StreamOptions) -> None:
        require_known_columns(options.columns, (), f"{address}: only Parquet files have columns")
        shaped = _with_channels(images, address)
        self._address = address
        self._white = pixel_scale.white_of(shaped, address, options.pixel_max)
        self._images = pixel_scale.to_uint8(shaped, self._white, address)
        self._settings, self._shape = options.preprocessing, options.shape
        example = fit_images(self._images[:1], self._settings)
        if example.shape[1:] != options.shape and (len(example) or self._settings is None):
            raise DataError(
                f"{address}: height, width, channels of the images are "
                f"{self._images.shape[1:]}, the network expects {options.shape}; resize the "
                "images, or train with dataset.image_size and dataset.channels"
            )

    def chunks(self) -> Sequence[InputChunk]:
        """Return chunks of equal size."""
        return equal_chunks(len(self._images), _CHUNK_ROWS)

    def schema(self) -> pa.Schema:
        """Return a schema without columns."""
        return pa.schema([])

    def identifier(self) -> Identifier:
        """Return that its number identifies an image."""
        return "row"

    def scales(self) -> list[float]:
        """Return the pixel value of white."""
        return [self._white]

    def identity(self) -> list[list[Any]]:
        """Return the address, the number of images, and their SHA-256."""
        digest = hashlib.sha256()
        for rows in chunks(self._images):
            digest.update(np.ascontiguousarray(self._images[rows]).data)
        return [[self._address, len(self._images), digest.hexdigest()]]

    def states(self, rows: Iterable[range]) -> FileStates:  # noqa: ARG002  (it looks at none)
        """Return the state of no files: `identity` has the images."""
        return FileStates()

    def read(
        self, chunk: InputChunk, batch_rows: int, rows: Rows | None = None
    ) -> Iterator[Batch | RejectedRows]:
        """Yield the images of a chunk."""
        batch_rows = raw_batch_rows(batch_rows, self._shape)
        for start, stop in batches_in(chunk, batch_rows, rows):
            yield Batch(
                fit_images(np.asarray(self._images[start:stop]), self._settings),
                np.arange(start, stop, dtype=np.int64),
                None,
                None,
            )

    def read_ahead(self, chunks: Sequence[InputChunk]) -> None:
        """Do nothing: the images have been read."""

    def part_rows(self, batch_rows: int) -> int:
        """Return some thousand rows, in whole batches."""
        return raw_part_rows(batch_rows, self._shape)

    def index(self) -> None:
        """Return nothing: the images are read again."""


def _with_channels(images: NDArray[Any], where: str) -> NDArray[Any]:
    if images.ndim in {3, 4} and not len(images):  # a day without images
        return np.empty((0, *images.shape[1:], 1)[:4], np.uint8)
    return with_channels(images, where)
