"""Parquet of any size, a row group at a time: the images, and the columns that are carried through."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.data import archives, pixel_scale
from nnbuild.data import arrow_images as image_columns
from nnbuild.data.arrays import as_pixels, with_channels
from nnbuild.engines import Pixels
from nnbuild.errors import DataError, suggestion
from nnbuild.scoring.table import Batch, Columns, InputChunk, RejectedRows
from nnbuild.store.filesystem import is_remote, os_errors_as_store_errors

_MOST_LABEL, _MOST_ID = np.iinfo(np.int16).max, np.iinfo(np.int64).max
_ROOM = 2**30  # bytes that the pictures of one batch may expand to
_EVIDENCE_ROWS = 1024
_BROKEN = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, RuntimeError)


class _Layout(NamedTuple):
    """How the images of a file are to be read.

    Attributes:
        image: Name of the column.
        label: Name of the column of labels; None if there is none that can be read.
        reader: Of the images.
    """

    image: str
    label: str | None
    reader: image_columns.Reader


class ParquetInput:
    """Rows of Parquet files that have a column of images; see `nnbuild.scoring.inputs.Input`.

    The files may differ in the order of their columns, in columns that are not wanted, and in the
    form of their images: each is scaled by itself.

    Args:
        address: As the user gave it.
        files: In order.
        columns: Which columns are wanted.
        shape: Height, width and channels that the network takes.
        pixel_max: The value that is white; by default type and content of each file say it.
        scales: What `scales` returned when the job was begun, so that it need not be found again.
        class_names: Of the model: labels that are texts, or numbers that name classes, are looked up there.

    Raises:
        DataError: A file is damaged, lacks a column, or has columns of other types than the first.
    """

    def __init__(
        self,
        address: str,
        files: Sequence[Any],
        columns: Columns,
        shape: tuple[int, int, int],
        *,
        pixel_max: float | None = None,
        scales: Sequence[float] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self._address, self._files, self._columns, self._shape = address, files, columns, shape
        self._open: tuple[int, Any] | None = None
        self._pixel_max = pixel_max
        self._class_names = tuple(class_names)
        self._whites = None if scales is None else tuple(scales)
        self._layouts: list[_Layout] = []
        self._chunks: list[InputChunk] = []
        self._starts: list[int] = []
        first = 0
        for number, path in enumerate(files):
            with _translated(path), _opened(path) as file:
                schema = file.schema_arrow
                groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            if number == 0:
                self._schema = schema
            self._layouts.append(self._layout(schema, path))
            self._starts.append(first)
            for group, metadata in enumerate(groups):
                self._require_ids(metadata, f"{path}, row group {group}")
                if metadata.num_rows:
                    self._chunks.append(InputChunk(number, group, first, metadata.num_rows))
                first += metadata.num_rows

    def chunks(self) -> Sequence[InputChunk]:
        """The row groups."""
        return self._chunks

    def schema(self) -> Any:
        """Of the columns that are carried through."""
        return pa.schema(
            [self._schema.field(name).with_nullable(nullable=True) for name in self._columns.keep]
        )

    def identity(self) -> list[list[Any]]:
        """Name, size and time of change of each file; of an object the ETag instead of the time."""
        with os_errors_as_store_errors(f"look into {self._address}"):
            return [[str(path), *_version(path)] for path in self._files]

    def scales(self) -> list[float]:
        """Return the pixel value that is white in each file; of floats, after reading all of them.

        Raises:
            DataError: Floats that could be 0 to 1 as well as 0 to 255.
        """
        if self._whites is None:
            self._whites = tuple(self._white(number) for number in range(len(self._files)))
        return list(self._whites)

    def read(self, chunk: InputChunk, batch_rows: int) -> Iterator[Batch | RejectedRows]:
        """Yield the rows of a row group, each of them once: scored or rejected; see `Input.read`."""
        done = 0
        batches = self._batches(chunk, batch_rows)
        while done < chunk.rows:
            try:
                batch = next(batches, None)
                reason = f"the row group ends after {done} of its {chunk.rows} rows"
            except _BROKEN as error:
                batch = None
                reason = f"no readable Parquet ({archives.reason_of(error)[:200]})"
            if batch is None:
                yield self._reject(chunk, chunk.first + done, chunk.rows - done, reason)
                return
            batch = batch.slice(0, chunk.rows - done)
            yield from self._rows(batch, chunk, chunk.first + done)
            done += len(batch)

    def _batches(self, chunk: InputChunk, batch_rows: int) -> Iterator[Any]:
        file = self._file(chunk.file)
        yield from file.iter_batches(
            batch_rows, row_groups=[chunk.group], columns=self._wanted(chunk.file)
        )

    def _rows(self, batch: Any, chunk: InputChunk, first: int) -> Iterator[Batch | RejectedRows]:
        """Yield the rows of a batch; halves it until the rows that cannot be converted are alone."""
        try:
            rows = self._made(batch, chunk.file, first)
        except MemoryError:  # says nothing about the rows
            raise
        except DataError as error:
            reason = str(error).removeprefix(f"{self._address}: ")
        except Exception as error:  # noqa: BLE001  (Arrow and decoders raise whatever they meet)
            reason = (
                f"cannot be converted ({type(error).__name__}: {archives.reason_of(error)[:200]})"
            )
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

    def _made(self, batch: Any, number: int, first: int) -> Batch:
        table = pa.Table.from_batches([batch])
        images = self._pixels(table, number, first)
        kept = (
            table.select(list(self._columns.keep)).cast(self.schema())
            if self._columns.keep
            else None
        )
        rows = Batch(images, self._ids(table, first), self._labels(table, number), kept)
        lengths = {len(each) for each in rows if each is not None}
        if lengths != {len(batch)}:
            raise DataError(f"{self._address}: {sorted(lengths)} values in {len(batch)} rows")
        return rows

    def _ids(self, table: Any, first: int) -> Any:
        name = self._columns.example_id
        if name is None:
            return np.arange(first, first + len(table), dtype=np.int64)
        ids = table[name]
        if ids.null_count:
            raise DataError(f"{self._address}: null in column {name!r}; expected an id")
        if (
            pa.types.is_uint64(ids.type)
            and len(ids)
            and (largest := pc.max(ids).as_py()) > _MOST_ID
        ):
            raise DataError(f"{self._address}: {self._too_large(largest)}")
        return ids.cast(pa.int64()).to_numpy()

    def _pixels(self, table: Any, number: int, first: int) -> Pixels:
        layout = self._layouts[number]
        images = layout.reader.read(table[layout.image], first, _ROOM, self._address)
        whites = self._whites or self.scales()
        pixels = as_pixels([images], self._address, whites[number])[0]
        if pixels.shape[1:] != self._shape:
            raise DataError(
                f"{self._address}: images of height, width, channels {pixels.shape[1:]}, "
                f"the network takes {self._shape}; give images of that size"
            )
        return pixels

    def _white(self, number: int) -> float:
        """Return the pixel value that is white in a file."""
        if self._pixel_max is not None:
            return self._pixel_max
        if not self._layouts[number].reader.is_float:
            return float(pixel_scale.WHITE)
        path = self._files[number]
        with _translated(path), _opened(path) as file:
            if _is_unit_by_statistics(file, self._layouts[number].image):
                return 1.0
            return pixel_scale.white_of_floats(self._floats(file, number), path)

    def _floats(self, file: Any, number: int) -> Iterator[NDArray[Any]]:
        """Read the images of a file that can be read, a few at a time."""
        layout = self._layouts[number]
        for group in range(file.num_row_groups):
            batches = file.iter_batches(
                _EVIDENCE_ROWS, row_groups=[group], columns=[layout.reader.column]
            )
            try:
                for batch in batches:
                    yield from self._readable(layout, pa.Table.from_batches([batch])[layout.image])
            except _BROKEN:
                continue  # its rows are named when their turn comes

    def _readable(self, layout: _Layout, column: Any) -> Iterator[NDArray[Any]]:
        """Read a column, without the rows that cannot be read or are of another size."""
        try:
            images = layout.reader.read(column, 0, _ROOM, self._address)
            if with_channels(images, self._address).shape[1:] == self._shape:
                yield images
        except DataError:
            if (half := len(column) // 2) > 0:
                yield from self._readable(layout, column.slice(0, half))
                yield from self._readable(layout, column.slice(half))

    def _labels(self, table: Any, number: int) -> Any:
        name = self._layouts[number].label
        if name is None:
            return None
        return _class_numbers(table[name], self._class_names).combine_chunks()

    def _wanted(self, number: int) -> list[str]:
        layout = self._layouts[number]
        names = [layout.reader.column, *self._columns.keep]
        names += [self._columns.example_id] if self._columns.example_id else []
        names += [layout.label] if layout.label else []
        return list(dict.fromkeys(names))

    def _layout(self, schema: Any, path: Any) -> _Layout:
        """Return how a file is to be read, whose carried columns have to be those of the first."""
        where = self._address if path == self._files[0] else path
        image = image_columns.image_column(schema.names, self._columns.image, where)
        example_id = self._columns.example_id
        for name in [*self._columns.keep, *([example_id] if example_id else [])]:
            if name not in schema.names:
                raise DataError(f"{where}: no column {name!r}; {suggestion(name, schema.names)}")
            kinds = [each.field(name).type for each in (schema, self._schema)]
            if name in self._columns.keep and kinds[0] != kinds[1]:
                raise DataError(
                    f"{path}: column {name!r} is {kinds[0]}, in {self._files[0]} it is {kinds[1]}; "
                    "score the two apart"
                )
        if example_id and not pa.types.is_integer(schema.field(example_id).type):
            kind = schema.field(example_id).type
            raise DataError(
                f"{where}: column {example_id!r} is {kind}; expected integers, or leave --id away"
            )
        reader = image_columns.reader(schema.field(image).type, schema.metadata or {}, where, image)
        return _Layout(image, self._label(schema, where), reader)

    def _label(self, schema: Any, where: object) -> str | None:
        wanted = self._columns.label
        try:
            name = image_columns.label_column(schema.names, wanted, where)
        except DataError:
            if wanted is not None:
                raise
            return None
        kind = schema.field(name).type
        if pa.types.is_integer(kind) or (image_columns.is_text(kind) and self._class_names):
            return name
        if wanted is not None:
            raise DataError(f"{where}: column {name!r} is {kind}; expected integers or class names")
        return None

    def _require_ids(self, group: Any, where: str) -> None:
        """Refuse ids that are too large before anything is scored, where the statistics tell."""
        if not self._columns.all_or_nothing or self._columns.example_id is None:
            return
        for number in range(group.num_columns):
            column = group.column(number)
            if column.path_in_schema != self._columns.example_id or not column.is_stats_set:
                continue
            largest = column.statistics.max if column.statistics.has_min_max else None
            if isinstance(largest, int) and largest > _MOST_ID:
                raise DataError(
                    f"{where}: {self._too_large(largest)}, or give --on-error quarantine"
                )

    def _too_large(self, largest: int) -> str:
        return (
            f"column {self._columns.example_id!r} holds {largest}; expected an int64 of at most "
            f"{_MOST_ID}"
        )

    def _file(self, number: int) -> Any:
        """The file, kept open while its row groups are read one after the other."""
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                self._open[1].close()
            self._open = (number, _opened(self._files[number]))
        return self._open[1]


def _class_numbers(labels: Any, names: Sequence[str]) -> Any:
    """Return labels as numbers of classes, int16; null where a label is none.

    Args:
        labels: Integers or texts.
        names: Of the model's classes; if all are numbers, an integer is a name too.
    """
    if image_columns.is_text(labels.type):
        texts = pc.utf8_normalize(labels.cast(pa.string()), "NFC")
        return pc.index_in(texts, value_set=pa.array(names, pa.string())).cast(pa.int16())
    numbers = labels.cast(pa.int64(), safe=False)  # beyond it they become negative
    if names and all(name.isdecimal() and name.isascii() for name in names):
        values = [int(name) for name in names]
        if values != list(range(len(values))) and max(values) <= _MOST_ID:
            return pc.index_in(numbers, value_set=pa.array(values, pa.int64())).cast(pa.int16())
    known = pc.and_(pc.greater_equal(numbers, 0), pc.less_equal(numbers, _MOST_LABEL))
    return pc.if_else(known, numbers, pa.scalar(None, pa.int64())).cast(pa.int16())


def _is_unit_by_statistics(file: Any, column: str) -> bool:
    """Return whether a file's metadata say that no value is below 0 or above 1, and not all are 0."""
    highest = 0.0
    for group in range(file.num_row_groups):
        chunks = file.metadata.row_group(group)
        for index in range(chunks.num_columns):
            chunk = chunks.column(index)
            if chunk.path_in_schema != column and not chunk.path_in_schema.startswith(f"{column}."):
                continue
            found = chunk.statistics
            if found is None or not found.has_min_max or not isinstance(found.max, float):
                return False  # the limits of float16 are given as bytes
            if not 0 <= found.min <= found.max <= 1:
                return False
            highest = max(highest, found.max)
    return highest > 0


def _version(path: Any) -> tuple[int, str]:
    if is_remote(path):
        info = path.fs.info(path.path)
        return int(info["size"]), str(info.get("ETag") or info.get("LastModified") or "")
    status = path.stat()
    return status.st_size, str(status.st_mtime_ns)


def _opened(path: Any) -> Any:
    if is_remote(path):
        return pq.ParquetFile(path.path, filesystem=path.fs)
    archives.require_regular(path)
    return pq.ParquetFile(path)


@contextmanager
def _translated(path: Any) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        reason = archives.reason_of(error)[:200]
        raise DataError(
            f"{path}: no readable Parquet ({reason}); fetch or write it again"
        ) from error
