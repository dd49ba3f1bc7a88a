"""Pictures of any number in a folder: each is decoded when its turn comes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nnbuild.data import decoding
from nnbuild.data.file_tree import File, files_below
from nnbuild.engines import Pixels
from nnbuild.errors import DataError, one_line
from nnbuild.runtime.text import encodable
from nnbuild.scoring.rows import Reject, Rows, Unit

PICTURE_COLUMNS = pa.schema(
    [
        pa.field(
            "path",
            pa.string(),
            metadata={"description": "POSIX path of the picture below the input"},
        )
    ]
)
_PER_UNIT = 4096
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

    def units(self) -> Sequence[Unit]:
        """Some thousand pictures each."""
        count = len(self._files)
        starts = range(0, count, _PER_UNIT)
        return [
            Unit(0, place, start, min(_PER_UNIT, count - start))
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

    def read(self, unit: Unit, batch_rows: int) -> Iterator[Rows | Reject]:
        """The pictures of a unit; one that cannot be read ends its batch."""
        images: list[Pixels] = []
        for row in range(unit.first, unit.first + unit.rows):
            found = self._picture(row, unit)
            if isinstance(found, Reject):
                yield from self._rows(images, row)
                yield found
                images = []
                continue
            images.append(found)
            if len(images) == batch_rows:
                yield from self._rows(images, row + 1)
                images = []
        yield from self._rows(images, unit.first + unit.rows)

    def _picture(self, row: int, unit: Unit) -> Pixels | Reject:
        path = self._files[row].path
        if not decoding.has_ending(path.name):
            return _reject(self._files[row], unit, decoding.NO_PICTURE)
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
        return _reject(self._files[row], unit, reason)

    def _rows(self, images: list[Pixels], end: int) -> Iterator[Rows]:
        """Yield the images of the rows before `end`, if there are any."""
        if not images:
            return
        first = end - len(images)
        paths = pa.array([encodable(file.name) for file in self._files[first:end]], pa.string())
        yield Rows(
            np.stack(images),
            np.arange(first, end, dtype=np.int64),
            None,
            pa.Table.from_arrays([paths], schema=PICTURE_COLUMNS),
        )


def _reject(file: File, unit: Unit, reason: str) -> Reject:
    return Reject(
        encodable(str(file.path)), unit.group, 0, 1, encodable(reason), encodable(file.name)
    )
