"""Read a folder, or a glob, of pictures for scoring; see `nnbuild.data.streams.ImageStream`."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nnbuild.data import decoding, preprocessing
from nnbuild.data.file_states import FileStates, states_of
from nnbuild.data.file_tree import File, files_as_json, names_of, outage_of, suffixes_of
from nnbuild.data.preprocessing import expected_suffixes, is_picture, not_a_picture
from nnbuild.data.streams import (
    PICTURE_COLUMNS,
    PICTURES,
    Batch,
    Identifier,
    InputChunk,
    Pixels,
    RejectedRows,
    Rows,
    StreamOptions,
    batches_in,
    equal_chunks,
    picture_part_rows,
    pictures_per_batch,
    require_known_columns,
)
from nnbuild.errors import DataError, StoreError, one_line
from nnbuild.runtime.text import encodable

_MAX_NAMED = 10


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
        require_known_columns(
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
        return equal_chunks(len(self._files), pictures_per_batch(self._shape))

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
        for start, stop in batches_in(chunk, batch_rows, rows):
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
            if (problem := outage_of(file, error)) is not None:
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
