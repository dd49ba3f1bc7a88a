"""Streams of images for scoring: pictures, and arrays.

The stream of Parquet files is in `nnbuild.data.parquet_stream`.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.data import decoding, pixel_scale, preprocessing
from nnbuild.data.arrays import with_channels
from nnbuild.data.file_states import FileStates, states_of
from nnbuild.data.file_tree import File, files_as_json, names_of, suffixes_of, unreachable
from nnbuild.data.pixels import IN_MEMORY, Workspace, chunks
from nnbuild.data.preprocessing import (
    Preprocessing,
    expected_suffixes,
    fit_images,
    is_picture,
    not_a_picture,
)
from nnbuild.errors import DataError, StoreError, one_line
from nnbuild.runtime.text import encodable

PICTURE_COLUMNS = pa.schema(
    [
        pa.field(
            "path",
            pa.string(),
            metadata={"description": "POSIX path of the picture relative to the input"},
        )
    ]
)
PICTURES_PER_BATCH = 512
"""Maximum number of pictures in a batch, most of whose time is decoding, which cores share."""
_FEW_PICTURES, _BATCH_VALUES = 32, 1 << 19
_PART_ROWS, _PART_VALUES = 8192, 1 << 22
PICTURES, PARQUET = "pictures", "Parquet"  # formats of an index
_MAX_FILES_RECORDED = 1000
_MAX_NAMED = 10
_CHUNK_ROWS = 65_536

Pixels = NDArray[np.uint8]
Identifier = Literal["row", "path", "integer", "text"]
"""What identifies a row: its number, the path of its picture, or a column of integers or texts."""


class Rows(NamedTuple):
    """Part of a chunk: the rows from `start` up to `stop`, counted from the first of the chunk."""

    start: int
    stop: int


class InputChunk(NamedTuple):
    """Part of an input that can be read separately, such as a row group.

    Attributes:
        file: Number of the file.
        group: Number of the row group in the file.
        first: Number of its first row in the whole input.
        rows: Number of rows.
    """

    file: int
    group: int
    first: int
    rows: int

    @property
    def numbers(self) -> range:
        """Return the numbers of its rows in the whole input."""
        return range(self.first, self.first + self.rows)


class Columns(NamedTuple):
    """Columns to read from an input.

    Attributes:
        example_id: Column that identifies a row; None for the row number.
        keep: Columns to copy to the output.
        all_or_nothing: Whether a row that cannot be scored stops the job.
        image: Column of the images; None to look for the usual names.
        label: Column of the labels; None to look for the usual names.
    """

    example_id: str | None = None
    keep: tuple[str, ...] = ()
    all_or_nothing: bool = False
    image: str | None = None
    label: str | None = None


_USUAL = Columns()


class Batch(NamedTuple):
    """Rows of an input that are scored together.

    Attributes:
        images: uint8, shape (n, height, width, channels); after inference, only the sample of them
            that the drift check needs.
        example_ids: int64, shape (n,).
        labels: int16 with nulls; None if the input has no labels.
        kept: Columns to copy to the output; None if there are none.
        keys: Texts that identify the rows, string; None if integers do.
    """

    images: Pixels
    example_ids: NDArray[np.int64]
    labels: pa.Array | None
    kept: pa.Table | None
    keys: pa.Array | None = None


class RejectedRows(NamedTuple):
    """Rows that cannot be scored, with the reason.

    Attributes:
        file: Path or URL of the file.
        row_group: Number of the row group in the file.
        row: Number of the first row in the file.
        rows: Number of rows.
        reason: Reason, on one line.
        path: POSIX path of a picture relative to the input folder; None for other inputs.
    """

    file: str
    row_group: int
    row: int
    rows: int
    reason: str
    path: str | None = None


class ImageStream(Protocol):
    """Images in a fixed order, in chunks that can be read separately."""

    def chunks(self) -> Sequence[InputChunk]:
        """Return the chunks, in order."""

    def schema(self) -> pa.Schema:
        """Return the schema of the columns to copy to the output."""

    def identity(self) -> list[list[Any]]:
        """Return what changes with the input: name, size and version of each file.

        For files that `states` has, which are many and small, only what changes with their names.
        """

    def states(self, rows: Iterable[range]) -> FileStates:
        """Return the state of the files with these rows, before they are read.

        Args:
            rows: Row numbers in the whole input.

        Returns:
            The state; of no files if `identity` has all of them.
        """

    def identifier(self) -> Identifier:
        """Return what identifies a row."""

    def scales(self) -> list[float]:
        """Return the pixel value of white, for each file or for all of them.

        Raises:
            DataError: Floats whose range could be 0 to 1 as well as 0 to 255.
        """

    def read(
        self, chunk: InputChunk, batch_rows: int, rows: Rows | None = None
    ) -> Iterator[Batch | RejectedRows]:
        """Yield the rows of a chunk in order, those that cannot be read as `RejectedRows`.

        Args:
            chunk: Chunk to read.
            batch_rows: Maximum number of rows in a batch.
            rows: Part of the chunk; all of it if None. A batch is in the part in which its first
                row is, so that the batches do not depend on the parts.
        """

    def read_ahead(self, chunks: Sequence[InputChunk]) -> None:
        """Begin to fetch chunks that will be read in this order, if fetching them takes time."""

    def part_rows(self, batch_rows: int) -> int:
        """Return how many rows a process should score at a time: for some tenths of a second.

        Args:
            batch_rows: Maximum number of rows in a batch.
        """

    def index(self) -> dict[str, Any] | None:
        """Return what was found when the input was opened, in JSON, to open it elsewhere at once.

        Returns:
            Content of `StreamOptions.index`; None for an input that must be read again.
        """


@dataclass(frozen=True)
class StreamOptions:
    """What to read from an input, and for which network.

    Attributes:
        shape: Height, width and channels of the network's images.
        columns: Columns to read. Pictures only have `path`, which is always copied to the output;
            arrays have no columns.
        pixel_max: Pixel value of white; None to infer it from type and content.
        scales: Result of `ImageStream.scales` when the job was created; None to infer it again.
        class_names: Class names of the model, to look up labels that are names.
        pictures_only: Whether files that are not pictures are an error among pictures.
        preprocessing: Settings of the model's run, by which images get the shape; None if they
            must have it.
        index: Result of `ImageStream.index` for the same input; None to list and to read it.
        workspace: Where the images of an array are held.
    """

    shape: tuple[int, int, int]
    columns: Columns = _USUAL
    pixel_max: float | None = None
    scales: Sequence[float] | None = None
    class_names: Sequence[str] = ()
    pictures_only: bool = False
    preprocessing: Preprocessing | None = None
    index: dict[str, Any] | None = None
    workspace: Workspace = IN_MEMORY


def identity_of(source: ImageStream) -> list[list[Any]]:
    """Return the identity of an input, short enough to be recorded; see `ImageStream.identity`.

    Returns:
        The entries of its files; of more than a thousand their number, size, and a digest of all.
    """
    files = source.identity()
    if len(files) <= _MAX_FILES_RECORDED:
        return files
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return [[f"{len(files)} files", sum(size for _, size, *_ in files), digest]]


def complete_identity(identity: list[list[Any]], states: FileStates) -> list[list[Any]]:
    """Return the identity of an input with the states of its files.

    Args:
        identity: Result of `identity_of`.
        states: Result of `ImageStream.states` for all rows.
    """
    if not states.files:
        return identity
    return [[f"{states.files} pictures", states.bytes, states.digest]]


class PictureStream:
    """Pictures in the order of their paths; see `ImageStream`.

    A file that is not a picture is a row that cannot be scored. Each row has the column `path`, to
    join it with its picture; bytes of the path that are not UTF-8 are escaped.

    Args:
        address: Address of the pictures, as the user wrote it.
        files: Files, with their names for the column `path`.
        options: What to read, and for which network.

    Raises:
        DataError: A column is requested that pictures do not have, or there are other files and
            the options refuse them.
    """

    def __init__(self, address: str, files: Sequence[File], options: StreamOptions) -> None:
        _require_columns(
            options.columns,
            PICTURE_COLUMNS.names,
            f"{address}: a picture only has the column path",
        )
        self._files = files
        self._shape, self._settings = options.shape, options.preprocessing
        if options.index is None:
            self._require_pictures(address, options)

    def _require_pictures(self, address: str, options: StreamOptions) -> None:
        settings = options.preprocessing
        suffixes = suffixes_of(self._files)  # few, while there can be a million files
        if options.pictures_only and not all(is_picture(each, settings) for each in suffixes):
            others = [name for name in names_of(self._files) if not is_picture(name, settings)]
            named = ", ".join(others[:_MAX_NAMED]) + ", …" * (len(others) > _MAX_NAMED)
            raise DataError(
                f"{address}: {len(others)} file(s) that are not pictures: {named}; expected files "
                f"that end in {expected_suffixes(settings)}: remove the others, or set on_error "
                "to quarantine"
            )

    def chunks(self) -> Sequence[InputChunk]:
        """Return chunks of some hundred pictures."""
        return _equal_chunks(len(self._files), pictures_per_batch(self._shape))

    def part_rows(self, batch_rows: int) -> int:
        """Return the pictures of some batches."""
        return picture_part_rows(batch_rows, self._shape)

    def schema(self) -> pa.Schema:
        """Return the only column of pictures, `path`."""
        return PICTURE_COLUMNS

    def identifier(self) -> Identifier:
        """Return that the path identifies a picture."""
        return "path"

    def scales(self) -> list[float]:
        """Return the pixel value of white, the same for all pictures."""
        return [float(decoding.WHITE)]

    def identity(self) -> list[list[Any]]:
        """Return the number of pictures, and the SHA-256 of their names."""
        names = "\0".join(names_of(self._files))
        digest = hashlib.sha256(os.fsencode(names)).hexdigest()
        return [[f"{len(self._files)} pictures", digest]]

    def states(self, rows: Iterable[range]) -> FileStates:
        """Return the state of the pictures with these numbers."""
        return states_of([str(self._files[number]) for part in rows for number in part])

    def read(
        self, chunk: InputChunk, batch_rows: int, rows: Rows | None = None
    ) -> Iterator[Batch | RejectedRows]:
        """Yield the pictures of a chunk; an unreadable one ends its batch."""
        for start, stop in _batches_in(chunk, batch_rows, rows):
            yield from self._read_batch(chunk, start, stop)

    def read_ahead(self, chunks: Sequence[InputChunk]) -> None:
        """Do nothing: pictures are local files."""

    def index(self) -> dict[str, Any]:
        """Return the files."""
        return {"format": PICTURES, "files": files_as_json(self._files)}

    def _read_batch(
        self, chunk: InputChunk, start: int, stop: int
    ) -> Iterator[Batch | RejectedRows]:
        pictures = [self._picture(row, chunk) for row in range(start, stop)]
        images: list[Pixels] = []
        for row, picture in enumerate(pictures, start):
            if isinstance(picture, RejectedRows):
                yield from self._batch(images, row)
                yield picture
                images = []
                continue
            images.append(picture)
        yield from self._batch(images, stop)

    def _picture(self, row: int, chunk: InputChunk) -> Pixels | RejectedRows:
        file = self._files[row]
        path = str(file)
        if not is_picture(path, self._settings):
            return _reject(file, chunk, not_a_picture(self._settings))
        try:
            pixels = preprocessing.read(path, self._settings)
            if pixels.shape == self._shape:
                return pixels
            reason = (
                f"height, width, channels are {pixels.shape}, the network expects {self._shape}; "
                "resize the picture, or train with dataset.image_size and dataset.channels"
            )
        except (MemoryError, StoreError):  # not the fault of the picture
            raise
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                problem = unreachable(file)
                if problem is not None:
                    raise problem from error
            reason = str(error).removeprefix(f"{path}: ")
        except Exception as error:  # noqa: BLE001  (decoders raise errors of any type)
            reason = f"not decodable ({type(error).__name__}: {one_line(error)[:200]})"
        return _reject(file, chunk, reason)

    def _batch(self, images: list[Pixels], end: int) -> Iterator[Batch]:
        """Yield the images of the rows before `end` as a batch, if there are any."""
        if not images:
            return
        first = end - len(images)
        paths = pa.array([encodable(file.name) for file in self._files[first:end]], pa.string())
        yield Batch(
            np.stack(images),
            np.arange(first, end, dtype=np.int64),
            None,
            pa.Table.from_arrays([paths], schema=PICTURE_COLUMNS),
        )


def _reject(file: File, chunk: InputChunk, reason: str) -> RejectedRows:
    return RejectedRows(
        encodable(str(file.path)), chunk.group, 0, 1, encodable(reason), encodable(file.name)
    )


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
        _require_columns(options.columns, (), f"{address}: only Parquet files have columns")
        shaped = _with_channels(images, address)
        self._address = address
        self._white = pixel_scale.white_of(shaped, address, options.pixel_max)
        self._images = pixel_scale.to_uint8(shaped, self._white, address)
        self._settings = options.preprocessing
        example = fit_images(self._images[:1], self._settings)
        if example.shape[1:] != options.shape and (len(example) or self._settings is None):
            raise DataError(
                f"{address}: height, width, channels of the images are "
                f"{self._images.shape[1:]}, the network expects {options.shape}; resize the "
                "images, or train with dataset.image_size and dataset.channels"
            )

    def chunks(self) -> Sequence[InputChunk]:
        """Return chunks of equal size."""
        return _equal_chunks(len(self._images), _CHUNK_ROWS)

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
        for start, stop in _batches_in(chunk, batch_rows, rows):
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
        return raw_part_rows(batch_rows)

    def index(self) -> None:
        """Return nothing: the images are read again."""


def raw_part_rows(batch_rows: int) -> int:
    """Return the rows of a part whose images are not decoded: some thousand, in whole batches."""
    return batch_rows * max(1, round(_PART_ROWS / batch_rows))


def picture_part_rows(batch_rows: int, shape: tuple[int, int, int]) -> int:
    """Return the rows of a part whose images are decoded, in at least two whole batches.

    Args:
        batch_rows: Maximum number of rows in a batch.
        shape: Height, width and channels of the network's images.
    """
    batch = min(batch_rows, pictures_per_batch(shape))
    return batch * max(2, round(_PART_VALUES / math.prod(shape) / batch))


def pictures_per_batch(shape: tuple[int, int, int]) -> int:
    """Return the maximum number of pictures in a batch: fewer if the images are large.

    Args:
        shape: Height, width and channels of the network's images.
    """
    return min(PICTURES_PER_BATCH, max(_FEW_PICTURES, _BATCH_VALUES // math.prod(shape)))


def _batches_in(chunk: InputChunk, batch_rows: int, rows: Rows | None) -> Iterator[tuple[int, int]]:
    """Yield the first row of each batch of a part, and the row after its last, in the input."""
    part = rows or Rows(0, chunk.rows)
    for start in range(0, chunk.rows, batch_rows):
        if part.start <= start < part.stop:
            yield chunk.first + start, chunk.first + min(start + batch_rows, chunk.rows)


def _equal_chunks(rows: int, size: int) -> list[InputChunk]:
    starts = range(0, rows, size)
    return [
        InputChunk(0, number, start, min(size, rows - start)) for number, start in enumerate(starts)
    ]


def _with_channels(images: NDArray[Any], where: str) -> NDArray[Any]:
    if images.ndim in {3, 4} and not len(images):  # a day without images
        return np.empty((0, *images.shape[1:], 1)[:4], np.uint8)
    return with_channels(images, where)


def _require_columns(columns: Columns, known: Sequence[str], fact: str) -> None:
    """Refuse columns that inputs other than Parquet do not have, such as a column of IDs."""
    missing = [name for name in columns.keep if name not in known]
    missing += [columns.example_id] if columns.example_id else []
    if missing:
        raise DataError(f"{fact}, not {', '.join(missing)}; remove it from keep or id_column")
