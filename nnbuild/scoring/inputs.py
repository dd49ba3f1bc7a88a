"""What is scored: Parquet, a row group at a time; pictures, some at a time; arrays, all at once."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from nnbuild.data import idx, npz
from nnbuild.data.arrays import as_pixels
from nnbuild.engines import Pixels
from nnbuild.errors import DataError
from nnbuild.scoring.parquet_input import ParquetInput, parquet_files
from nnbuild.scoring.picture_input import PictureInput
from nnbuild.scoring.rows import Columns, Reject, Rows, Unit
from nnbuild.store.remote import is_url

_ROWS = 65_536
_IDX_MAGIC = (b"\0\0\x08", b"\x1f\x8b")


class Input(Protocol):
    """Images in an order that never changes, in units that can be read alone."""

    def units(self) -> Sequence[Unit]:
        """The units, in order."""

    def schema(self) -> Any:
        """The Arrow schema of the columns that are carried through."""

    def identity(self) -> list[list[Any]]:
        """What tells whether the input is still the same: name, size and version of each file."""

    def read(self, unit: Unit, batch_rows: int) -> Iterator[Rows | Reject]:
        """The rows of a unit; where one cannot be read, a `Reject` stands for it."""


def open_input(address: str, columns: Columns, shape: tuple[int, int, int]) -> Input:
    """Open an input.

    Args:
        address: a Parquet file, a folder or a glob of them, or a URL of either; a file of IDX images; an .npz with
            `images` or `x_test`; a folder of pictures.
        columns: which of its columns are ids or carried through; Parquet alone has any.
        shape: height, width and channels that the network takes.

    Raises:
        DataError: there is nothing, it is of no known form, or it has other images than the network takes.
    """
    if is_url(address) or (files := parquet_files(address)):
        return ParquetInput(
            address, parquet_files(address) if is_url(address) else files, columns, shape
        )
    if columns.keep or columns.example_id:
        wanted = ", ".join([*columns.keep, *([columns.example_id] if columns.example_id else [])])
        raise DataError(
            f"{address}: only Parquet has columns, and {wanted} cannot be read; leave --keep and --id away"
        )
    if Path(address).is_dir():
        return PictureInput(address, shape)
    return _Arrays(address, _images(Path(address), address), shape)


def _images(path: Path, address: str) -> Pixels:
    if not path.exists():
        raise DataError(
            f"{address}: no such input; give a Parquet file, a folder, a glob, IDX images or an .npz"
        )
    if path.suffix == ".npz":
        names = npz.names(path)
        return as_pixels(npz.read(path, ["images" if "images" in names else "x_test"]), path)[0]
    with path.open("rb") as file:
        magic = file.read(3)
    if magic.startswith(_IDX_MAGIC):
        return as_pixels([idx.read(path)], path)[0]
    raise DataError(
        f"{address}: neither Parquet, IDX, .npz nor a folder; convert it to one of these"
    )


@dataclass(frozen=True)
class _Arrays:
    address: str
    images: Pixels
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
