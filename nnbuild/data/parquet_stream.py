"""Read Parquet inputs of any size, a row group at a time: images, labels and columns to copy."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.data import archives, pixel_scale
from nnbuild.data.arrays import as_pixels, with_channels
from nnbuild.data.arrow_images import is_text
from nnbuild.data.arrow_labels import class_numbers
from nnbuild.data.file_states import FileStates
from nnbuild.data.file_tree import File, files_as_json
from nnbuild.data.parquet import errors_as_data_errors
from nnbuild.data.parquet_files import BROKEN, ParquetFiles, open_file, why_unreadable
from nnbuild.data.parquet_layout import Layout, Layouts
from nnbuild.data.parquet_statistics import is_unit_range, largest_integer
from nnbuild.data.preprocessing import PictureReader, fit_images
from nnbuild.data.streams import (
    PARQUET,
    Batch,
    Identifier,
    InputChunk,
    Pixels,
    RejectedRows,
    Rows,
    StreamOptions,
    picture_part_rows,
    pictures_per_batch,
    raw_batch_rows,
    raw_part_rows,
)
from nnbuild.errors import DataError, StoreError
from nnbuild.store.filesystem import os_errors_as_store_errors

_MAX_ID = np.iinfo(np.int64).max
_MAX_BATCH_BYTES = 2**30  # limit on the decoded pictures of a batch
_EVIDENCE_ROWS = 1024
_SMALL_BYTES = 2**20  # of a remote file that is fetched whole; twice as many wait as are fetched


@dataclass
class _Position:
    """Row group that is being read, and how many of its rows have been."""

    chunk: InputChunk
    batch_rows: int
    batches: Iterator[pa.RecordBatch]
    done: int = 0


class ParquetStream:
    """Rows of Parquet files with a column of images; see `nnbuild.data.streams.ImageStream`.

    The files may differ in the order of their columns, in columns that are not read, and in the
    type of their images, which are scaled for each file separately.

    Args:
        address: Address of the input, as the user wrote it.
        files: Files, in order.
        options: What to read, and for which network.

    Raises:
        DataError: A file is damaged, lacks a column, or has other column types than the first.
    """

    def __init__(self, address: str, files: Sequence[File], options: StreamOptions) -> None:
        self._address, self._columns, self._shape = address, options.columns, options.shape
        self._files, self._parquet = files, ParquetFiles(files)
        self._position: _Position | None = None
        self._pixel_max = options.pixel_max
        self._class_names = tuple(options.class_names)
        self._pictures = PictureReader(options.preprocessing)
        self._whites = None if options.scales is None else tuple(options.scales)
        self._layout_by_file: dict[int, Layout] = {}
        self._chunks: list[InputChunk] = []
        self._starts: list[int] = []
        self._bytes: list[int] = []
        self._decodes: list[bool] = []
        if options.index is None:
            self._read_footers()
        else:
            self._read_index(options.index)

    def _read_footers(self) -> None:
        first = 0
        for number, (schema, metadata) in enumerate(self._parquet.footers()):
            if number == 0:
                self._set_schema(schema)
            layout = self._layout_by_file[number] = self._layouts.of(self._files[number], schema)
            self._starts.append(first)
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            self._bytes.append(sum(each.total_byte_size for each in groups))
            self._decodes.append(layout.reader.decodes)
            for group, about in enumerate(groups):
                self._require_ids(about, f"{self._files[number]}, row group {group}")
                if about.num_rows:
                    self._chunks.append(InputChunk(number, group, first, about.num_rows))
                first += about.num_rows

    def part_rows(self, batch_rows: int) -> int:
        """Return some thousand rows in whole batches, or the pictures of some batches."""
        if any(self._decodes):
            return picture_part_rows(batch_rows, self._shape)
        return raw_part_rows(batch_rows, self._shape)

    def index(self) -> dict[str, Any]:
        """Return the files, what the footers say about them, and the schema of the first."""
        return {
            "format": PARQUET,
            "files": files_as_json(self._files),
            "schema": base64.b64encode(self._schema.serialize()).decode(),
            "chunks": self._chunks,
            "starts": self._starts,
            "bytes": self._bytes,
            "decodes": self._decodes,
        }

    def _read_index(self, index: dict[str, Any]) -> None:
        self._set_schema(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(index["schema"]))))
        self._chunks = [InputChunk(*each) for each in index["chunks"]]
        self._starts, self._bytes = index["starts"], index["bytes"]
        self._decodes = index["decodes"]

    def _set_schema(self, first: pa.Schema) -> None:
        """Take the schema of the first file, to which those of the others are compared."""
        self._schema = first
        self._layouts = Layouts(
            self._address,
            self._columns,
            self._class_names,
            self._pictures,
            (self._files[0], first),
        )

    def _layout_of(self, number: int) -> Layout:
        """Return the layout of a file, which is read now if the stream was opened by an index."""
        if number not in self._layout_by_file:
            schema = self._parquet.get(number).schema_arrow
            self._layout_by_file[number] = self._layouts.of(self._files[number], schema)
        return self._layout_by_file[number]

    def chunks(self) -> Sequence[InputChunk]:
        """Return the row groups that are not empty."""
        return self._chunks

    def schema(self) -> pa.Schema:
        """Return the schema of the columns to copy to the output.

        Views become texts and bytes, since Arrow cannot filter them.
        """
        fields = [self._schema.field(name) for name in self._columns.keep]
        return pa.schema(
            each.with_nullable(nullable=True).with_type(_without_view(each.type)) for each in fields
        )

    def identity(self) -> list[list[Any]]:
        """Return name, size and time of change of each file; for objects the ETag, not the time."""
        with os_errors_as_store_errors(f"read {self._address}"):
            versions = self._parquet.versions()
            return [[str(file), *each] for file, each in zip(self._files, versions, strict=True)]

    def states(self, rows: Iterable[range]) -> FileStates:  # noqa: ARG002  (it looks at none)
        """Return the state of no files: `identity` has them."""
        return FileStates()

    def identifier(self) -> Identifier:
        """Return what identifies a row: its number, or the type of the column of IDs."""
        if self._columns.example_id is None:
            return "row"
        kind = self._schema.field(self._columns.example_id).type
        return "text" if is_text(kind) else "integer"

    def scales(self) -> list[float]:
        """Return the pixel value of white in each file; floats may have to be read completely.

        Raises:
            DataError: Floats whose range could be 0 to 1 as well as 0 to 255.
        """
        if self._whites is None:
            self._whites = tuple(self._white(number) for number in range(len(self._files)))
        return list(self._whites)

    def read(
        self, chunk: InputChunk, batch_rows: int, rows: Rows | None = None
    ) -> Iterator[Batch | RejectedRows]:
        """Yield each row of a row group once, in a batch or rejected; see `ImageStream.read`.

        A row group can only be read from its beginning. If the next part of the same row group is
        read next, reading continues where it stopped.
        """
        if self._decodes[chunk.file]:
            batch_rows = min(batch_rows, pictures_per_batch(self._shape))
        else:
            batch_rows = raw_batch_rows(batch_rows, self._shape)
        part = rows or Rows(0, chunk.rows)
        position, self._position = self._position_before(part, chunk, batch_rows), None
        while position.done < part.stop:
            first, left = chunk.first + position.done, chunk.rows - position.done
            is_wanted = position.done >= part.start
            try:
                batch = next(position.batches, None)
                reason = f"the row group ends after {position.done} of its {chunk.rows} rows"
            except Exception as error:  # noqa: BLE001  (raised again unless the file is bad)
                batch, reason = None, why_unreadable(error, self._files[chunk.file])
            if batch is None:
                if is_wanted:
                    yield self._reject(chunk, first, left, reason)
                return
            batch = batch.slice(0, left)
            if is_wanted:
                yield from self._rows(batch, chunk, first)
            position.done += len(batch)
        self._position = position

    def _position_before(self, part: Rows, chunk: InputChunk, batch_rows: int) -> _Position:
        """Return where to continue: in the row group that was read last, or at the beginning."""
        last = self._position
        if (
            last is not None
            and (last.chunk, last.batch_rows) == (chunk, batch_rows)
            and last.done <= part.start
        ):
            return last
        return _Position(chunk, batch_rows, self._batches(chunk, batch_rows))

    def _batches(self, chunk: InputChunk, batch_rows: int) -> Iterator[pa.RecordBatch]:
        yield from self._parquet.get(chunk.file).iter_batches(
            batch_rows,
            row_groups=[chunk.group],
            columns=self._layouts.names(self._layout_of(chunk.file)),
            # A single thread of Arrow's would only have memory of its own.
            use_threads=pa.cpu_count() > 1,
        )

    def read_ahead(self, chunks: Sequence[InputChunk]) -> None:
        """Begin to fetch the small remote files of these chunks, each as a whole."""
        files = {chunk.file for chunk in chunks}
        self._parquet.fetch_ahead(file for file in files if self._bytes[file] <= _SMALL_BYTES)

    def _rows(
        self, batch: pa.RecordBatch, chunk: InputChunk, first: int
    ) -> Iterator[Batch | RejectedRows]:
        """Yield the rows of a batch, which is halved until each bad row is on its own."""
        try:
            rows = self._convert(batch, chunk.file, first)
        except (MemoryError, StoreError):  # not the fault of the rows
            raise
        except DataError as error:
            row = f"{self._address}, row {first}: "
            reason = str(error).removeprefix(row).removeprefix(f"{self._address}: ")
        except Exception as error:  # noqa: BLE001  (Arrow and decoders raise errors of any type)
            reason = f"not convertible ({type(error).__name__}: {archives.reason_of(error)[:200]})"
        else:
            yield rows
            return
        if len(batch) == 1:
            yield self._reject(chunk, first, 1, reason)
            return
        half = len(batch) // 2
        yield from self._rows(batch.slice(0, half), chunk, first)
        yield from self._rows(batch.slice(half), chunk, first + half)

    def _reject(self, chunk: InputChunk, first: int, rows: int, reason: str) -> RejectedRows:
        in_file = first - self._starts[chunk.file]
        return RejectedRows(str(self._files[chunk.file]), chunk.group, in_file, rows, reason)

    def _convert(self, batch: pa.RecordBatch, number: int, first: int) -> Batch:
        table = pa.Table.from_batches([batch])
        images = self._pixels(table, number, first)
        kept = (
            table.select(list(self._columns.keep)).cast(self.schema())
            if self._columns.keep
            else None
        )
        ids, keys = self._ids(table, first)
        rows = Batch(images, ids, self._labels(table, number), kept, keys)
        lengths = {len(each) for each in rows if each is not None}
        if lengths != {len(batch)}:
            raise DataError(f"{self._address}: {sorted(lengths)} values in {len(batch)} rows")
        return rows

    def _ids(self, table: pa.Table, first: int) -> tuple[NDArray[np.int64], pa.Array | None]:
        """Return the integer ID of each row, and the texts that identify the rows, if they do."""
        name, numbers = self._columns.example_id, np.arange(first, first + len(table))
        if name is None:
            return numbers, None
        ids = table[name]
        if ids.null_count:
            raise DataError(f"{self._address}: null in column {name!r}; expected an ID")
        if self.identifier() == "text":
            return numbers, ids.cast(pa.string()).combine_chunks()
        if pa.types.is_uint64(ids.type) and len(ids):
            largest = pc.max(ids).as_py()
            if largest > _MAX_ID:
                raise DataError(f"{self._address}: {self._id_too_large(largest)}")
        values: NDArray[np.int64] = ids.cast(pa.int64()).to_numpy()
        return values, None

    def _pixels(self, table: pa.Table, number: int, first: int) -> Pixels:
        layout = self._layout_of(number)
        images = layout.reader.read(table[layout.image], first, _MAX_BATCH_BYTES, self._address)
        whites = self._whites or self.scales()
        pixels = as_pixels([images], self._address, whites[number])[0]
        pixels = fit_images(pixels, self._pictures.settings)
        if pixels.shape[1:] != self._shape:
            raise DataError(
                f"{self._address}: height, width, channels of the images are {pixels.shape[1:]}, "
                f"the network expects {self._shape}; resize the images, or train with "
                "dataset.image_size and dataset.channels"
            )
        return pixels

    def _white(self, number: int) -> float:
        """Return the pixel value of white in a file."""
        if self._pixel_max is not None:
            return self._pixel_max
        if not self._layout_of(number).reader.is_float:
            return float(pixel_scale.WHITE)
        path = self._files[number].path
        with errors_as_data_errors(path), open_file(path) as file:
            if is_unit_range(file.metadata, self._layout_of(number).image):
                return 1.0
            return pixel_scale.white_of_floats(self._floats(file, number), path)

    def _floats(self, file: Any, number: int) -> Iterator[NDArray[Any]]:
        """Yield the readable images of a file, a few at a time."""
        layout = self._layout_of(number)
        for group in range(file.num_row_groups):
            batches = file.iter_batches(
                _EVIDENCE_ROWS, row_groups=[group], columns=[layout.reader.column]
            )
            try:
                for batch in batches:
                    yield from self._readable(layout, pa.Table.from_batches([batch])[layout.image])
            except BROKEN:
                continue  # its rows are rejected when they are scored

    def _readable(self, layout: Layout, column: pa.ChunkedArray) -> Iterator[NDArray[Any]]:
        """Yield the images of a column, except unreadable ones and those of another size."""
        try:
            images = layout.reader.read(column, 0, _MAX_BATCH_BYTES, self._address)
            shape = with_channels(images, self._address).shape[1:]
            if shape == self._shape or self._pictures.settings is not None:
                yield images
        except DataError:
            if (half := len(column) // 2) > 0:
                yield from self._readable(layout, column.slice(0, half))
                yield from self._readable(layout, column.slice(half))

    def _labels(self, table: pa.Table, number: int) -> pa.Array | None:
        name = self._layout_of(number).label
        if name is None:
            return None
        return class_numbers(table[name], self._class_names).combine_chunks()

    def _require_ids(self, group: pq.RowGroupMetaData, where: str) -> None:
        """Refuse IDs that are too large before anything is scored, if the statistics show it."""
        if not self._columns.all_or_nothing or self._columns.example_id is None:
            return
        largest = largest_integer(group, self._columns.example_id)
        if largest is not None and largest > _MAX_ID:
            raise DataError(
                f"{where}: {self._id_too_large(largest)}, or set on_error to quarantine"
            )

    def _id_too_large(self, largest: int) -> str:
        name = self._columns.example_id
        return f"column {name!r} contains {largest}; expected an int64 of at most {_MAX_ID}"


def _without_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind
