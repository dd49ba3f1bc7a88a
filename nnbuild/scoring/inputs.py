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
from nnbuild.data.file_tree import files_below, path_exists
from nnbuild.engines import Pixels
from nnbuild.errors import DataError
from nnbuild.scoring.addresses import parquet_files
from nnbuild.scoring.parquet_input import ParquetInput
from nnbuild.scoring.picture_input import PICTURE_COLUMNS, PictureInput
from nnbuild.scoring.rows import Columns, Reject, Rows, Unit
from nnbuild.store.filesystem import is_url

_ROWS = 65_536
_IDX_MAGIC = (b"\0\0", b"\x1f\x8b")  # of any type of values, or gzipped


class Input(Protocol):
    """Images in an order that never changes, in units that can be read alone."""

    def units(self) -> Sequence[Unit]:
        """The units, in order."""

    def schema(self) -> Any:
        """The Arrow schema of the columns that are carried through."""

    def identity(self) -> list[list[Any]]:
        """What tells whether the input is still the same: name, size and version of each file."""

    def scales(self) -> list[float]:
        """The pixel value that is white, of each file or of all of them.

        Raises:
            DataError: Floats that could be 0 to 1 as well as 0 to 255.
        """

    def read(self, unit: Unit, batch_rows: int) -> Iterator[Rows | Reject]:
        """The rows of a unit; where one cannot be read, a `Reject` stands for it."""


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

    def units(self) -> Sequence[Unit]:
        count = len(self.images)
        starts = range(0, count, _ROWS)
        return [
            Unit(0, place, start, min(_ROWS, count - start)) for place, start in enumerate(starts)
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

    def read(self, unit: Unit, batch_rows: int) -> Iterator[Rows | Reject]:
        for start in range(unit.first, unit.first + unit.rows, batch_rows):
            part = slice(start, min(start + batch_rows, unit.first + unit.rows))
            yield Rows(
                self.images[part], np.arange(part.start, part.stop, dtype=np.int64), None, None
            )
