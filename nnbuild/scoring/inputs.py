"""What is scored: Parquet, a row group at a time; pictures, some at a time; arrays, all at once."""

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
from nnbuild.scoring.table import Batch, Columns, InputChunk, RejectedRows
from nnbuild.store.filesystem import is_url

PICTURE_COLUMNS = pa.schema(
    [
        pa.field(
            "path",
            pa.string(),
            metadata={"description": "POSIX path of the picture below the input"},
        )
    ]
)
_CHUNK_IMAGES = 4096
_MOST_NAMED = 10


class PictureInput:
    """The files below a folder of pictures, in the order of their paths; see `nnbuild.scoring.inputs.Input`.

    A file that is not a picture is a row that cannot be scored. For what is passed over see
    `nnbuild.data.file_tree`. Each row carries the column `path`, by which it can be joined with its
    picture; its bytes that are not UTF-8 are escaped.

    Args:
        address: As the user gave it.
        shape: Height, width and channels that the network takes.
        pictures_only: Whether to refuse a folder with files that are not pictures.

    Raises:
        DataError: There are no pictures, or there is a pipe, a socket or a device.
    """

    def __init__(
        self, address: str, shape: tuple[int, int, int], *, pictures_only: bool = False
    ) -> None:
        found = files_below(Path(address))
        others = [file.name for file in found if not decoding.has_ending(file.name)]
        if len(others) == len(found):
            raise DataError(f"{address}: holds neither *.parquet nor pictures; give another folder")
        if others and pictures_only:
            named = ", ".join(others[:_MOST_NAMED]) + ", …" * (len(others) > _MOST_NAMED)
            raise DataError(
                f"{address}: {len(others)} file(s) that are not pictures: {named}; "
                "remove them, or give --on-error quarantine"
            )
        self._files = found
        self._shape = shape

    def chunks(self) -> Sequence[InputChunk]:
        """Some thousand pictures each."""
        count = len(self._files)
        starts = range(0, count, _CHUNK_IMAGES)
        return [
            InputChunk(0, place, start, min(_CHUNK_IMAGES, count - start))
            for place, start in enumerate(starts)
        ]

    def schema(self) -> Any:
        """Return the one column that pictures have: `path`."""
        return PICTURE_COLUMNS

    def scales(self) -> list[float]:
        """Return what is white in all pictures."""
        return [float(decoding.WHITE)]

    def identity(self) -> list[list[Any]]:
        """Path, size and time of change of each picture."""
        status = [(file.path, file.path.stat()) for file in self._files]
        return [[str(path), each.st_size, str(each.st_mtime_ns)] for path, each in status]

    def read(self, chunk: InputChunk, batch_rows: int) -> Iterator[Batch | RejectedRows]:
        """The pictures of a unit; one that cannot be read ends its batch."""
        images: list[Pixels] = []
        for row in range(chunk.first, chunk.first + chunk.rows):
            found = self._picture(row, chunk)
            if isinstance(found, RejectedRows):
                yield from self._rows(images, row)
                yield found
                images = []
                continue
            images.append(found)
            if len(images) == batch_rows:
                yield from self._rows(images, row + 1)
                images = []
        yield from self._rows(images, chunk.first + chunk.rows)

    def _picture(self, row: int, chunk: InputChunk) -> Pixels | RejectedRows:
        path = self._files[row].path
        if not decoding.has_ending(path.name):
            return _reject(self._files[row], chunk, decoding.NO_PICTURE)
        try:
            with decoding.strict():
                pixels = decoding.read(path)
            if pixels.shape == self._shape:
                return pixels
            reason = f"height, width, channels {pixels.shape}, the network takes {self._shape}"
        except MemoryError:  # says nothing about the picture
            raise
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ")
        except Exception as error:  # noqa: BLE001  (decoders raise whatever they meet)
            reason = f"cannot be decoded ({type(error).__name__}: {one_line(error)[:200]})"
        return _reject(self._files[row], chunk, reason)

    def _rows(self, images: list[Pixels], end: int) -> Iterator[Batch]:
        """Yield the images of the rows before `end`, if there are any."""
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


_ROWS = 65_536
_IDX_MAGIC = (b"\0\0", b"\x1f\x8b")  # of any type of values, or gzipped


class Input(Protocol):
    """Images in an order that never changes, in units that can be read alone."""

    def chunks(self) -> Sequence[InputChunk]:
        """The chunks, in order."""

    def schema(self) -> Any:
        """The Arrow schema of the columns that are carried through."""

    def identity(self) -> list[list[Any]]:
        """What tells whether the input is still the same: name, size and version of each file."""

    def scales(self) -> list[float]:
        """The pixel value that is white, of each file or of all of them.

        Raises:
            DataError: Floats that could be 0 to 1 as well as 0 to 255.
        """

    def read(self, chunk: InputChunk, batch_rows: int) -> Iterator[Batch | RejectedRows]:
        """The rows of a unit; where one cannot be read, a `RejectedRows` stands for it."""


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
        columns: Which of its columns are wanted; a folder of pictures has `path` alone, which is
            always carried through, and arrays have none.
        shape: Height, width and channels that the network takes.
        pixel_max: The pixel value that is white; type and content say it if None.
        scales: What `Input.scales` returned when the job was begun.
        class_names: Of the model, which labels are looked up in.
        pictures_only: Whether a file that is not a picture in a folder of pictures is an error.

    Raises:
        DataError: There is nothing, it is of no known form, or it has other images than the network takes.
    """
    if is_url(address) or (files := parquet_files(address)):
        return ParquetInput(
            address,
            parquet_files(address) if is_url(address) else _alone(files, address),
            columns,
            shape,
            pixel_max=pixel_max,
            scales=scales,
            class_names=class_names,
        )
    if path_exists(address) and Path(address).is_dir():
        known = PICTURE_COLUMNS.names
        _require_columns(
            columns, known, f"{address}: a folder of pictures has the column path alone"
        )
        return PictureInput(address, shape, pictures_only=pictures_only)
    _require_columns(columns, (), f"{address}: only Parquet has columns")
    images = _images(Path(address), address)
    white = pixel_scale.white_of(images, address, pixel_max)
    return _Arrays(address, pixel_scale.to_uint8(images, white, address), white, shape)


def _require_columns(columns: Columns, known: Sequence[str], fact: str) -> None:
    """Refuse columns that an input other than Parquet does not have, and any column of ids."""
    missing = [name for name in columns.keep if name not in known]
    missing += [columns.example_id] if columns.example_id else []
    if missing:
        raise DataError(
            f"{fact}, and {', '.join(missing)} cannot be read; remove it from --keep or --id"
        )


def _alone(files: list[Any], address: str) -> list[Any]:
    """Return the Parquet files of a folder that holds no pictures beside them."""
    if not path_exists(address) or not Path(address).is_dir():
        return files
    seen = (file.name for file in files_below(Path(address)))
    if (picture := next(filter(decoding.has_ending, seen), None)) is not None:
        raise DataError(
            f"{address}: holds Parquet ({files[0].name}) and pictures ({picture}); "
            "give the folder of one of them"
        )
    return files


def _images(path: Path, address: str) -> NDArray[Any]:
    """Return images of any numeric type, shape (n, height, width, channels)."""
    if not path_exists(path):
        raise DataError(
            f"{address}: no such input; give a Parquet file, a folder, a glob, IDX images or an .npz"
        )
    magic = archives.first_bytes(path, 2)
    if path.suffix == ".npz":
        key = scored_array(npz.names(path), path)
        return _with_channels(npz.read(path, [key])[0], path)
    if magic.startswith(_IDX_MAGIC):
        return _with_channels(idx.read_images(path), path)
    raise DataError(
        f"{address}: neither Parquet, IDX, .npz nor a folder; convert it to one of these"
    )


def _with_channels(images: NDArray[Any], path: Path) -> NDArray[Any]:
    if images.ndim in {3, 4} and not len(images):  # a day without images
        return np.empty((0, *images.shape[1:], 1)[:4], np.uint8)
    return with_channels(images, path)


@dataclass(frozen=True)
class _Arrays:
    address: str
    images: Pixels
    white: float
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.images.shape[1:] != self.shape:
            raise DataError(
                f"{self.address}: images of height, width, channels {self.images.shape[1:]}, "
                f"the network takes {self.shape}; give images of that size"
            )

    def chunks(self) -> Sequence[InputChunk]:
        count = len(self.images)
        starts = range(0, count, _ROWS)
        return [
            InputChunk(0, place, start, min(_ROWS, count - start))
            for place, start in enumerate(starts)
        ]

    def schema(self) -> Any:
        return pa.schema([])

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
