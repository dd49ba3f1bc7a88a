"""Pictures of any number in a folder: each is decoded when its turn comes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nnbuild.data import archives, pictures
from nnbuild.engines import Pixels
from nnbuild.errors import DataError, one_line
from nnbuild.scoring.rows import Reject, Rows, Unit

_PER_UNIT = 4096


class PictureInput:
    """The pictures below a folder, in the order of their paths; see `nnbuild.scoring.inputs.Input`.

    Args:
        address: as the user gave it.
        shape: height, width and channels that the network takes.

    Raises:
        DataError: there are none, or a link leads out of the folder.
    """

    def __init__(self, address: str, shape: tuple[int, int, int]) -> None:
        root = Path(address)
        with archives.translated(address):
            self._files = sorted(
                each for each in root.rglob("*") if each.suffix.lower() in pictures.SUFFIXES
            )
            resolved = root.resolve()
            for file in self._files:
                if file.is_symlink() and not file.resolve().is_relative_to(resolved):
                    raise DataError(
                        f"{file}: a link that leads out of {address}; put the file itself there"
                    )
        if not self._files:
            raise DataError(f"{address}: holds neither *.parquet nor pictures; give another folder")
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
        """Pictures have no columns."""
        return pa.schema([])

    def identity(self) -> list[list[Any]]:
        """Path, size and time of change of each picture."""
        status = [(file, file.stat()) for file in self._files]
        return [[str(file), each.st_size, str(each.st_mtime_ns)] for file, each in status]

    def read(self, unit: Unit, batch_rows: int) -> Iterator[Rows | Reject]:
        """The pictures of a unit; one that cannot be read ends its batch."""
        images: list[Pixels] = []
        for row in range(unit.first, unit.first + unit.rows):
            found = self._picture(row, unit)
            if isinstance(found, Reject):
                yield from _rows(images, row)
                yield found
                images = []
                continue
            images.append(found)
            if len(images) == batch_rows:
                yield from _rows(images, row + 1)
                images = []
        yield from _rows(images, unit.first + unit.rows)

    def _picture(self, row: int, unit: Unit) -> Pixels | Reject:
        file = self._files[row]
        try:
            archives.require_regular(file)
            with archives.translated(file), pictures.strict():
                pixels = pictures.decode(file.read_bytes(), file)
            if pixels.shape == self._shape:
                return pixels
            reason = f"height, width, channels {pixels.shape}, the network takes {self._shape}"
        except MemoryError:  # says nothing about the picture
            raise
        except DataError as error:
            reason = str(error).removeprefix(f"{file}: ")
        except Exception as error:  # noqa: BLE001  (decoders raise whatever they meet)
            reason = f"cannot be decoded ({type(error).__name__}: {one_line(error)[:200]})"
        return Reject(str(file), unit.group, 0, 1, reason)


def _rows(images: list[Pixels], end: int) -> Iterator[Rows]:
    if images:
        yield Rows(np.stack(images), np.arange(end - len(images), end, dtype=np.int64), None, None)
