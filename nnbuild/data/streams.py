"""The interface of the inputs of scoring, which yield images in batches.

It is implemented for pictures, arrays and Parquet files in `picture_stream`, `array_stream` and
`parquet_stream`.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.data.file_states import FileStates
from nnbuild.data.pixels import IN_MEMORY, Workspace
from nnbuild.data.preprocessing import Preprocessing
from nnbuild.errors import DataError

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
_RAW_PART_VALUES = 1 << 23
_RAW_BATCH_VALUES = 5 << 19  # Arrow holds two batches: the last one while it reads the next
PICTURES, PARQUET = "pictures", "Parquet"  # formats of an index
_MAX_FILES_RECORDED = 1000

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


def raw_part_rows(batch_rows: int, shape: tuple[int, int, int]) -> int:
    """Return the rows of a part whose images are not decoded: some batches, fewer if large.

    Args:
        batch_rows: Maximum number of rows in a batch.
        shape: Height, width and channels of the network's images.
    """
    batch = raw_batch_rows(batch_rows, shape)
    rows = min(_PART_ROWS, _RAW_PART_VALUES // math.prod(shape))
    return batch * max(1, round(rows / batch))


def raw_batch_rows(batch_rows: int, shape: tuple[int, int, int]) -> int:
    """Return the rows of a batch whose images are not decoded: fewer if the images are large.

    Args:
        batch_rows: Maximum number of rows in a batch.
        shape: Height, width and channels of the network's images.
    """
    fitting = max(_FEW_PICTURES, _RAW_BATCH_VALUES // math.prod(shape))
    step = PICTURES_PER_BATCH if fitting >= PICTURES_PER_BATCH else _FEW_PICTURES
    # A multiple of the images of most calls of ONNX Runtime, so that few calls are smaller.
    return min(batch_rows, fitting // step * step)


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


def batches_in(chunk: InputChunk, batch_rows: int, rows: Rows | None) -> Iterator[tuple[int, int]]:
    """Yield the first row of each batch of a part, and the row after its last, in the input."""
    part = rows or Rows(0, chunk.rows)
    for start in range(0, chunk.rows, batch_rows):
        if part.start <= start < part.stop:
            yield chunk.first + start, chunk.first + min(start + batch_rows, chunk.rows)


def equal_chunks(rows: int, size: int) -> list[InputChunk]:
    """Return chunks of the same number of rows, of which the last can be smaller."""
    starts = range(0, rows, size)
    return [
        InputChunk(0, number, start, min(size, rows - start)) for number, start in enumerate(starts)
    ]


def require_known_columns(columns: Columns, known: Sequence[str], fact: str) -> None:
    """Refuse columns that inputs other than Parquet do not have, such as a column of IDs."""
    missing = [name for name in columns.keep if name not in known]
    missing += [columns.example_id] if columns.example_id else []
    if missing:
        raise DataError(f"{fact}, not {', '.join(missing)}; remove it from keep or id_column")
