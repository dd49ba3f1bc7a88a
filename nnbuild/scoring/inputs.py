"""Inputs of scoring: Parquet files and pictures, read in chunks, and arrays, read at once."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.config.names import scored_array
from nnbuild.data import archives, decoding, idx, npz, pixel_scale
from nnbuild.data.arrays import with_channels
from nnbuild.data.file_tree import File, files_below, path_exists
from nnbuild.engines import Pixels
from nnbuild.errors import DataError, one_line
from nnbuild.runtime.text import encodable
from nnbuild.scoring.addresses import parquet_files
from nnbuild.scoring.parquet_input import ParquetInput
from nnbuild.scoring.table import Batch, Columns, Identifier, InputChunk, RejectedRows
from nnbuild.store.filesystem import is_url

PICTURE_COLUMNS = pa.schema(
    [
        pa.field(
            "path",
            pa.string(),
            metadata={"description": "POSIX path of the picture relative to the input"},
        )
    ]
)
_CHUNK_IMAGES = 4096
_MAX_NAMED = 10
_CHUNK_ROWS = 65_536
_IDX_MAGIC = (b"\0\0", b"\x1f\x8b")  # plain, or gzipped


class Input(Protocol):
    """Images in a fixed order, in chunks that can be read separately."""

    def chunks(self) -> Sequence[InputChunk]:
        """Return the chunks, in order."""

    def schema(self) -> pa.Schema:
        """Return the schema of the columns to copy to the output."""

    def identity(self) -> list[list[Any]]:
        """Return name, size and version of each file, which change with the input."""

    def identifier(self) -> Identifier:
        """Return what identifies a row."""

    def scales(self) -> list[float]:
        """Return the pixel value of white, for each file or for all of them.

        Raises:
            DataError: Floats whose range could be 0 to 1 as well as 0 to 255.
        """

    def read(self, chunk: InputChunk, batch_rows: int) -> Iterator[Batch | RejectedRows]:
        """Yield the rows of a chunk in order, those that cannot be read as `RejectedRows`."""


def open_input(
    address: str,
    columns: Columns,
    shape: tuple[int, int, int],
    *,
    pixel_max: float | None = None,
    scales: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
    pictures_only: bool = False,
) -> Input:
    """Open an input.

    Args:
        address: A Parquet file, a folder or a glob of them, or a URL of either; a file of IDX
            images; an .npz with `images` or `x_test`; a folder of pictures.
        columns: Columns to read. A folder of pictures only has `path`, which is always copied to
            the output; arrays have no columns.
        shape: Height, width and channels of the network's images.
        pixel_max: Pixel value of white; None to infer it from type and content.
        scales: Result of `Input.scales` when the job was created; None to infer it again.
        class_names: Class names of the model, to look up labels.
        pictures_only: Whether other files in a folder of pictures are an error.

    Raises:
        DataError: There is no such input, its format is unknown, or its images do not have the
            shape that the network expects.
    """
    if is_url(address) or (files := parquet_files(address)):
        return ParquetInput(
            address,
            parquet_files(address) if is_url(address) else _require_no_pictures(files, address),
            columns,
            shape,
            pixel_max=pixel_max,
            scales=scales,
            class_names=class_names,
        )
    if path_exists(address) and Path(address).is_dir():
        known = PICTURE_COLUMNS.names
        _require_columns(
            columns, known, f"{address}: a folder of pictures only has the column path"
        )
        return PictureInput(address, shape, pictures_only=pictures_only)
    _require_columns(columns, (), f"{address}: only Parquet files have columns")
    images = _images(Path(address), address)
    white = pixel_scale.white_of(images, address, pixel_max)
    return _Arrays(address, pixel_scale.to_uint8(images, white, address), white, shape)


def _require_columns(columns: Columns, known: Sequence[str], fact: str) -> None:
    """Refuse columns that inputs other than Parquet do not have, such as a column of IDs."""
    missing = [name for name in columns.keep if name not in known]
    missing += [columns.example_id] if columns.example_id else []
    if missing:
        raise DataError(f"{fact}, not {', '.join(missing)}; remove it from keep or id_column")


def _require_no_pictures(files: list[Any], address: str) -> list[Any]:
    """Return the Parquet files of a folder, unless it also contains pictures."""
    if not path_exists(address) or not Path(address).is_dir():
        return files
    names = (file.name for file in files_below(Path(address)))
    if (picture := next(filter(decoding.has_ending, names), None)) is not None:
        raise DataError(
            f"{address}: contains both Parquet files ({files[0].name}) and pictures ({picture}); "
            "use a separate folder for each"
        )
    return files


def _images(path: Path, address: str) -> NDArray[Any]:
    """Return the images of an array file, any numeric type, (n, height, width, channels)."""
    if not path_exists(path):
        raise DataError(
            f"{address}: no such input; expected a Parquet file, a folder, a glob, IDX or .npz"
        )
    magic = archives.first_bytes(path, 2)
    if path.suffix == ".npz":
        key = scored_array(npz.names(path), path)
        return _with_channels(npz.read(path, [key])[0], path)
    if magic.startswith(_IDX_MAGIC):
        return _with_channels(idx.read_images(path), path)
    raise DataError(f"{address}: unknown format; expected Parquet, IDX, .npz or a folder")


def _with_channels(images: NDArray[Any], path: Path) -> NDArray[Any]:
    if images.ndim in {3, 4} and not len(images):  # a day without images
        return np.empty((0, *images.shape[1:], 1)[:4], np.uint8)
    return with_channels(images, path)


def _equal_chunks(rows: int, size: int) -> list[InputChunk]:
    starts = range(0, rows, size)
    return [
        InputChunk(0, number, start, min(size, rows - start)) for number, start in enumerate(starts)
    ]


class PictureInput:
    """The files below a folder of pictures, in the order of their paths; see `Input`.

    A file that is not a picture is a row that cannot be scored. `nnbuild.data.file_tree` says which
    files are ignored. Each row has the column `path`, to join it with its picture; bytes of the
    path that are not UTF-8 are escaped.

    Args:
        address: Address of the folder, as the user wrote it.
        shape: Height, width and channels of the network's images.
        pictures_only: Whether to refuse a folder with other files.

    Raises:
        DataError: There are no pictures, or there is a pipe, a socket or a device.
    """

    def __init__(
        self, address: str, shape: tuple[int, int, int], *, pictures_only: bool = False
    ) -> None:
        files = files_below(Path(address))
        others = [file.name for file in files if not decoding.has_ending(file.name)]
        if len(others) == len(files):
            raise DataError(f"{address}: contains neither *.parquet nor pictures")
        if others and pictures_only:
            names = ", ".join(others[:_MAX_NAMED]) + ", …" * (len(others) > _MAX_NAMED)
            raise DataError(
                f"{address}: {len(others)} file(s) that are not pictures: {names}; "
                "remove them, or set on_error to quarantine"
            )
        self._files = files
        self._shape = shape

    def chunks(self) -> Sequence[InputChunk]:
        """Return chunks of some thousand pictures."""
        return _equal_chunks(len(self._files), _CHUNK_IMAGES)

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
        """Return path, size and time of change of each picture."""
        status = [(file.path, file.path.stat()) for file in self._files]
        return [[str(path), each.st_size, str(each.st_mtime_ns)] for path, each in status]

    def read(self, chunk: InputChunk, batch_rows: int) -> Iterator[Batch | RejectedRows]:
        """Yield the pictures of a chunk; an unreadable one ends its batch."""
        images: list[Pixels] = []
        for row in range(chunk.first, chunk.first + chunk.rows):
            picture = self._picture(row, chunk)
            if isinstance(picture, RejectedRows):
                yield from self._batch(images, row)
                yield picture
                images = []
                continue
            images.append(picture)
            if len(images) == batch_rows:
                yield from self._batch(images, row + 1)
                images = []
        yield from self._batch(images, chunk.first + chunk.rows)

    def _picture(self, row: int, chunk: InputChunk) -> Pixels | RejectedRows:
        path = self._files[row].path
        if not decoding.has_ending(path.name):
            return _reject(self._files[row], chunk, decoding.NO_PICTURE)
        try:
            with decoding.strict():
                pixels = decoding.read(path)
            if pixels.shape == self._shape:
                return pixels
            reason = (
                f"height, width, channels are {pixels.shape}, the network expects {self._shape}"
            )
        except MemoryError:  # not the fault of the picture
            raise
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ")
        except Exception as error:  # noqa: BLE001  (decoders raise errors of any type)
            reason = f"not decodable ({type(error).__name__}: {one_line(error)[:200]})"
        return _reject(self._files[row], chunk, reason)

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


@dataclass(frozen=True)
class _Arrays:
    address: str
    images: Pixels
    white: float
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.images.shape[1:] != self.shape:
            raise DataError(
                f"{self.address}: height, width, channels of the images are "
                f"{self.images.shape[1:]}, the network expects {self.shape}; resize the images"
            )

    def chunks(self) -> Sequence[InputChunk]:
        return _equal_chunks(len(self.images), _CHUNK_ROWS)

    def schema(self) -> pa.Schema:
        return pa.schema([])

    def identifier(self) -> Identifier:
        return "row"

    def scales(self) -> list[float]:
        return [self.white]

    def identity(self) -> list[list[Any]]:
        return [
            [
                self.address,
                len(self.images),
                hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest(),
            ]
        ]

    def read(self, chunk: InputChunk, batch_rows: int) -> Iterator[Batch | RejectedRows]:
        for start in range(chunk.first, chunk.first + chunk.rows, batch_rows):
            part = slice(start, min(start + batch_rows, chunk.first + chunk.rows))
            yield Batch(
                self.images[part], np.arange(part.start, part.stop, dtype=np.int64), None, None
            )
