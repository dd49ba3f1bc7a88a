"""Parquet of any size, a row group at a time: the images, and the columns that are carried through."""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nnbuild.data import columns as image_columns
from nnbuild.data.arrays import as_pixels
from nnbuild.engines import Pixels
from nnbuild.errors import DataError, one_line, suggestion
from nnbuild.scoring.rows import Columns, Reject, Rows, Unit
from nnbuild.store.files import explained
from nnbuild.store.remote import is_remote, is_url, open_root

_IMAGE, _LABEL = "image", "label"
_MOST_LABEL, _MOST_ID = np.iinfo(np.int16).max, np.iinfo(np.int64).max
_ROOM = 2**30  # bytes that the pictures of one batch may expand to
_BROKEN = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, RuntimeError)


def parquet_files(address: str) -> list[Any]:
    """The Parquet files behind an address, in the order of their names; none if it leads to something else.

    Args:
        address: a file, a folder with *.parquet below it, a glob, or a URL of one of these.

    Raises:
        DataError: a URL that leads nowhere.
    """
    if is_url(address):
        stem, star, pattern = address.partition("*")
        above, _, beginning = stem.rpartition("/") if star else (address, "", "")
        with explained(f"look into {address}"):
            root = open_root(above)
            found = sorted(root.glob(beginning + star + pattern)) if star else _below(root)
        if not found:
            raise DataError(
                f"{address}: no Parquet files there; give a file, a folder or a glob of them"
            )
        return found
    if glob.has_magic(address) and not Path(address).exists():
        return [
            Path(each)
            for each in sorted(glob.glob(address, recursive=True))  # noqa: PTH207  (the pattern may be absolute)
            if each.endswith(".parquet")
        ]
    return _below(Path(address))


def _below(path: Any) -> list[Any]:
    if path.is_dir():
        return sorted(each for each in path.rglob("*.parquet") if not each.name.startswith("."))
    if path.is_file():
        with path.open("rb") as file:
            return [path] if file.read(4) == b"PAR1" or path.suffix == ".parquet" else []
    return []


class ParquetInput:
    """Rows of Parquet files that have a column `image`; see `nnbuild.scoring.inputs.Input`.

    Args:
        address: as the user gave it.
        files: of the same schema, in order.
        columns: which ones are wanted beside the images.
        shape: height, width and channels that the network takes.

    Raises:
        DataError: a file is damaged, lacks a column, or has other images.
    """

    def __init__(
        self, address: str, files: Sequence[Any], columns: Columns, shape: tuple[int, int, int]
    ) -> None:
        self._address, self._files, self._columns, self._shape = address, files, columns, shape
        self._open: tuple[int, Any] | None = None
        schemas = []
        self._units: list[Unit] = []
        self._starts: list[int] = []
        first = 0
        for number, path in enumerate(files):
            with _translated(path), _opened(path) as file:
                schemas.append(file.schema_arrow)
                self._starts.append(first)
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    self._require_ids(file.metadata.row_group(group), f"{path}, row group {group}")
                    self._units.append(Unit(number, group, first, rows))
                    first += rows
        if not first:
            raise DataError(f"{address}: holds no rows; expected images")
        self._schema = schemas[0]
        self._require_columns()
        for path, schema in zip(files, schemas, strict=True):
            if not schema.equals(self._schema):
                raise DataError(f"{path}: has other columns than {files[0]}; score the two apart")
        self._reader = image_columns.reader(
            self._schema.field(_IMAGE).type, self._schema.metadata or {}, address
        )
        self._scale_by_255 = self._floats_up_to_one()

    def units(self) -> Sequence[Unit]:
        """The row groups."""
        return self._units

    def schema(self) -> Any:
        """Of the columns that are carried through."""
        return pa.schema(
            [self._schema.field(name).with_nullable(nullable=True) for name in self._columns.keep]
        )

    def identity(self) -> list[list[Any]]:
        """Name, size and time of change of each file; of an object the ETag instead of the time."""
        with explained(f"look into {self._address}"):
            return [[str(path), *_version(path)] for path in self._files]

    def read(self, unit: Unit, batch_rows: int) -> Iterator[Rows | Reject]:
        """Yield the rows of a row group, each of them once: scored or rejected; see `Input.read`."""
        done = 0
        batches = self._batches(unit, batch_rows)
        while done < unit.rows:
            try:
                batch = next(batches, None)
                reason = f"the row group ends after {done} of its {unit.rows} rows"
            except _BROKEN as error:
                batch = None
                reason = f"no readable Parquet ({one_line(error)[:200]})"
            if batch is None:
                yield self._reject(unit, unit.first + done, unit.rows - done, reason)
                return
            batch = batch.slice(0, unit.rows - done)
            yield from self._rows(batch, unit, unit.first + done)
            done += len(batch)

    def _batches(self, unit: Unit, batch_rows: int) -> Iterator[Any]:
        file = self._file(unit.file)
        yield from file.iter_batches(batch_rows, row_groups=[unit.group], columns=self._wanted())

    def _rows(self, batch: Any, unit: Unit, first: int) -> Iterator[Rows | Reject]:
        """Yield the rows of a batch; halves it until the rows that cannot be converted are alone."""
        try:
            rows = self._made(batch, first)
        except MemoryError:  # says nothing about the rows
            raise
        except DataError as error:
            reason = str(error).removeprefix(f"{self._address}: ")
        except Exception as error:  # noqa: BLE001  (Arrow and decoders raise whatever they meet)
            reason = f"cannot be converted ({type(error).__name__}: {one_line(error)[:200]})"
        else:
            yield rows
            return
        if len(batch) == 1:
            yield self._reject(unit, first, 1, reason)
            return
        half = len(batch) // 2
        yield from self._rows(batch.slice(0, half), unit, first)
        yield from self._rows(batch.slice(half), unit, first + half)

    def _reject(self, unit: Unit, first: int, rows: int, reason: str) -> Reject:
        in_file = first - self._starts[unit.file]
        return Reject(str(self._files[unit.file]), unit.group, in_file, rows, reason)

    def _made(self, batch: Any, first: int) -> Rows:
        table = pa.Table.from_batches([batch])
        images = self._pixels(table[_IMAGE], first)
        kept = (
            table.select(list(self._columns.keep)).cast(self.schema())
            if self._columns.keep
            else None
        )
        rows = Rows(images, self._ids(table, first), self._labels(table), kept)
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

    def _pixels(self, column: Any, first: int) -> Pixels:
        images = self._reader.read(column, first, _ROOM, self._address)
        if images.dtype.kind == "f":
            # Beyond the range on both sides stays beyond it, and is refused below as NaN is.
            scaled = np.rint(np.clip(images * (255.0 if self._scale_by_255 else 1.0), -1, 256))
            images = scaled.astype(np.int16) if np.isfinite(images).all() else images
        pixels = as_pixels([images], self._address)[0]
        if pixels.shape[1:] != self._shape:
            raise DataError(
                f"{self._address}: images of height, width, channels {pixels.shape[1:]}, "
                f"the network takes {self._shape}; give images of that size"
            )
        return pixels

    def _floats_up_to_one(self) -> bool:
        """Whether pixels are floats from 0 to 1: the first rows tell, and the others are held to it."""
        unit = self._units[0]
        with _translated(self._files[0]):
            batch = next(
                self._file(0).iter_batches(1024, row_groups=[unit.group], columns=self._wanted()),
                None,
            )
        if batch is None:
            return False
        try:
            images = self._reader.read(
                pa.Table.from_batches([batch])[_IMAGE], 0, _ROOM, self._address
            )
        except DataError:
            return False
        return bool(images.dtype.kind == "f" and len(images) and images.max() <= 1)

    def _labels(self, table: Any) -> Any:
        if _LABEL not in table.column_names or not pa.types.is_integer(table[_LABEL].type):
            return None
        labels = table[_LABEL].cast(pa.int64(), safe=False)  # beyond it they become negative
        known = pc.and_(pc.greater_equal(labels, 0), pc.less_equal(labels, _MOST_LABEL))
        return (
            pc.if_else(known, labels, pa.scalar(None, pa.int64())).cast(pa.int16()).combine_chunks()
        )

    def _wanted(self) -> list[str]:
        names = [self._reader.column, *self._columns.keep]
        names += [self._columns.example_id] if self._columns.example_id else []
        names += [_LABEL] if _LABEL in self._schema.names else []
        return list(dict.fromkeys(names))

    def _require_columns(self) -> None:
        wanted = [
            _IMAGE,
            *self._columns.keep,
            *([self._columns.example_id] if self._columns.example_id else []),
        ]
        for name in wanted:
            if name not in self._schema.names:
                raise DataError(
                    f"{self._address}: no column {name!r}; {suggestion(name, self._schema.names)}"
                )
        example_id = self._columns.example_id
        if example_id and not pa.types.is_integer(self._schema.field(example_id).type):
            kind = self._schema.field(example_id).type
            raise DataError(
                f"{self._address}: column {example_id!r} is {kind}; expected integers, or leave --id away"
            )

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


def _version(path: Any) -> tuple[int, str]:
    if is_remote(path):
        info = path.fs.info(path.path)
        return int(info["size"]), str(info.get("ETag") or info.get("LastModified") or "")
    status = path.stat()
    return status.st_size, str(status.st_mtime_ns)


def _opened(path: Any) -> Any:
    return (
        pq.ParquetFile(path.path, filesystem=path.fs) if is_remote(path) else pq.ParquetFile(path)
    )


@contextmanager
def _translated(path: Any) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: no readable Parquet ({reason}); fetch or write it again"
        ) from error
