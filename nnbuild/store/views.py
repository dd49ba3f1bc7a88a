"""Tables as readers see them: the rows of committed runs and scoring jobs only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from nnbuild.errors import StoreError, one_line, suggestion
from nnbuild.store import schema_evolution, schemas
from nnbuild.store.filesystem import is_remote, os_errors_as_store_errors
from nnbuild.store.ids import is_run_id, require_id, require_name
from nnbuild.store.schemas import partition_key

if TYPE_CHECKING:
    import pyarrow.dataset as ds

    from nnbuild.store.store import Store

T = TypeVar("T")

_TRIES = 3


def partitions(folder: Any, key: str) -> list[str]:
    """Return the IDs of the partitions in the folder of a table, sorted."""
    with os_errors_as_store_errors(f"list {folder}"):
        if not folder.is_dir():
            return []
        names = (path.name.removeprefix(f"{key}=") for path in folder.iterdir())
        return sorted(name for name in names if is_run_id(name))


@dataclass(frozen=True)
class Part:
    """One Parquet file with committed rows of a table.

    Attributes:
        table: Name of the table.
        value: ID of the run or scoring job.
        path: Path of the file.
    """

    table: str
    value: str
    path: Any

    @cached_property
    def fragment(self) -> "ds.ParquetFileFragment":
        """Return the file as Arrow scans it, with the ID that its folder is named after.

        The ID is not parsed from the path, since folders above the store may have such names too.
        """
        import pyarrow.dataset as ds  # it imports pandas, which writing a table does not need

        partition = ds.field(partition_key(self.table)) == self.value
        path, filesystem = _address(self.path)
        return ds.ParquetFileFormat().make_fragment(path, filesystem, partition)

    @cached_property
    def schema(self) -> pa.Schema:
        """Return the columns of the file, without one that has the name of the table's key.

        Raises:
            StoreError: The file is damaged, of another schema version, or of another table.
        """
        with reading_errors(self.path):
            schema = self.fragment.physical_schema
        schemas.require_version(schema, str(self.path))
        schemas.require_columns(self.table, schema, str(self.path))
        hidden = schema.get_field_index(partition_key(self.table))
        return schema.remove(hidden) if hidden >= 0 else schema

    def file(self) -> schema_evolution.File:
        """Return the schema and the statistics that decide the types of its columns."""
        return schema_evolution.File(self.schema, self.fragment.metadata)


def _address(path: Any) -> tuple[str, Any]:
    from pyarrow import fs

    if is_remote(path):
        return path.path, fs.PyFileSystem(fs.FSSpecHandler(path.fs))
    return str(path), fs.LocalFileSystem()


@contextmanager
def reading_errors(path: Any) -> Iterator[None]:
    """Turn Arrow's errors about a file into a StoreError that names the file."""
    with os_errors_as_store_errors(f"read {path}"):
        try:
            yield
        except pa.ArrowException as error:
            raise StoreError(
                f"cannot read {path}: {one_line(error)}; restore it from a copy"
            ) from error


def committed_parts(
    store: "Store", name: str, only: str | Sequence[str] | None = None
) -> list[Part]:
    """Return the files with the committed rows of a table, oldest run or scoring job first.

    Args:
        store: Store to read.
        name: Name of the table.
        only: ID of one run or scoring job, or several; all of them if not given.

    Raises:
        StoreError: No run or scoring job of such an ID is committed.
    """
    key = partition_key(require_name(name))
    # The list of IDs is read first: all files of an ID were complete before its row was written.
    ids = store.committed_ids(key)
    if name == schemas.CHAMPIONS_TABLE:  # it remembers champions whose runs were deleted
        ids = sorted({*ids, *partitions(store.root / "tables" / name, key)})
    for each in [only] if isinstance(only, str) else only or ():
        if require_id(each, key) not in ids:
            what = {"run_id": "run", "score_id": "scoring job", "label_id": "set of labels"}[key]
            raise StoreError(f"no committed {what} {each} in {store.root}; see `nnbuild runs`")
    if only is not None:
        ids = [only] if isinstance(only, str) else list(only)
    parts = _parts_of(store, name, ids)
    if is_remote(store.root) and deleted_ids(store, parts):
        # Objects are deleted one by one, so that some may have been missing in the list. A local
        # folder disappears at once.
        return committed_parts(store, name, only)
    return parts


def newest_parts(store: "Store", name: str, count: int) -> list[Part]:
    """Return the files of the newest runs or scoring jobs, as `committed_parts` does."""
    ids = store.committed_ids(partition_key(name))
    return _parts_of(store, name, ids[-count:])


def _parts_of(store: "Store", name: str, ids: Sequence[str]) -> list[Part]:
    folders = [
        (each, store.root / "tables" / name / f"{partition_key(name)}={each}") for each in ids
    ]
    with os_errors_as_store_errors(f"list the files of table {name}"):
        return [
            Part(name, each, path)
            for each, folder in folders
            if folder.is_dir()
            for path in sorted(folder.iterdir())
            if path.suffix == ".parquet" and not path.name.startswith((".", "_"))
        ]


def deleted_ids(store: "Store", parts: Sequence[Part]) -> set[str]:
    """Return the IDs of the runs or jobs that were deleted since their files were listed."""
    if not parts or parts[0].table == schemas.CHAMPIONS_TABLE:
        return set()
    ids = store.committed_ids(partition_key(parts[0].table))
    return {part.value for part in parts} - set(ids)


def read_again_if_deleted(read: Callable[[], T]) -> T:
    """Return the result of a function that lists files and reads them.

    It is called again if a file has disappeared in between: its run was deleted. If the file is
    missing for another reason, the same error is raised again.
    """
    for _ in range(_TRIES - 1):
        try:
            return read()
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return read()


class TableView:
    """A table with one type for each column, whatever types the single files have.

    Args:
        name: Name of the table.
        parts: Its files, at least one.

    Attributes:
        key: Name of the column that the table is partitioned by; the first column.
        types: Type of each other column; None where it is read as text.

    Raises:
        StoreError: A file is damaged, of another schema version, or of another table.
    """

    def __init__(self, name: str, parts: Sequence[Part]) -> None:
        self.name, self.parts = name, parts
        self.key = partition_key(name)
        # The schema's own fields come first: a damaged file may allow nulls where it does not.
        expected = schemas.expected_columns(name, parts[0].schema)
        self._fields: dict[str, pa.Field] = {field.name: field for field in expected}
        for part in parts:
            for field in part.schema:
                self._fields.setdefault(field.name, field)
        self.types = schema_evolution.unified([part.file() for part in parts])
        for field in expected:
            self.types.setdefault(field.name, field.type)  # younger than all of the files

    def schema_of(self, part: Part) -> pa.Schema:
        """Return the schema to scan a file with: columns read as text have the file's own type."""
        fields = [pa.field(self.key, pa.string())]
        for name, kind in self.types.items():
            place = part.schema.get_field_index(name)
            own = part.schema.field(place).type if place >= 0 else pa.string()
            field = self._fields[name].with_type(own if kind is None else kind)
            fields.append(field if place >= 0 else field.with_nullable(nullable=True))
        return pa.schema(fields, metadata=self.parts[0].schema.metadata)

    def scans(self) -> Iterator[tuple[pa.Schema, list[Part]]]:
        """Yield neighbouring files that have the same types, and the schema to scan them with."""
        with_schemas = [(self.schema_of(part), part) for part in self.parts]
        for schema, found in groupby(with_schemas, key=lambda each: each[0]):
            yield schema, [part for _, part in found]

    def read(self, columns: Sequence[str] | None) -> pa.Table:
        """Return the rows, with the key as the first column.

        Args:
            columns: Names of the columns to read; all of them if not given.

        Raises:
            StoreError: No file has such a column, or a file is damaged.
        """
        names = [each for each in columns or self.types if each != self.key]
        for each in names:
            if each not in self.types:
                raise StoreError(
                    f"table {self.name} has no column {each!r}; {suggestion(each, self.types)}"
                )
        found = [self._read(schema, parts, names) for schema, parts in self.scans()]
        return pa.concat_tables(found, promote_options="default")

    def _read(self, schema: pa.Schema, parts: list[Part], names: list[str]) -> pa.Table:
        with reading_errors(parts[0].path if len(parts) == 1 else parts[0].path.parents[1]):
            table = dataset(parts, schema).to_table(columns=[self.key, *names])
            table.validate(full=True)
        for name in names:
            place = table.column_names.index(name)
            if self.types[name] is None:
                field = schema.field(name).with_type(pa.string())
                table = table.set_column(place, field, as_text(table[name]))
            elif not schema.field(name).nullable and table[name].null_count:
                raise StoreError(
                    f"table {self.name} has nulls in column {name!r}, where none are allowed, in "
                    f"{' or '.join(str(part.path) for part in parts[:3])}; restore it from a copy"
                )
        return table


def dataset(parts: Sequence[Part], schema: pa.Schema) -> "ds.FileSystemDataset":
    """Return files of a table as one Arrow dataset.

    Args:
        parts: Files of the same store.
        schema: Schema to scan them with, the key included.
    """
    import pyarrow.dataset as ds

    fragments = [part.fragment for part in parts]
    return ds.FileSystemDataset(fragments, schema, ds.ParquetFileFormat(), fragments[0].filesystem)


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as the text that DuckDB casts its values to, as `nnbuild sql` shows it."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("source", pa.table({"value": column}))
        found = connection.sql("SELECT CAST(value AS VARCHAR) AS value FROM source")
        return found.to_arrow_table()["value"].cast(pa.string())


def committed_rows(
    store: "Store",
    name: str,
    only: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Return the committed rows of a table; see `nnbuild.store.Store.read_table`."""
    return read_again_if_deleted(lambda: _committed_rows(store, name, only, columns))


def _committed_rows(
    store: "Store", name: str, only: str | Sequence[str] | None, columns: Sequence[str] | None
) -> pa.Table:
    parts = committed_parts(store, name, only)
    if parts:
        return TableView(name, parts).read(columns)
    if name in schemas.STATIC_SCHEMAS:
        return keyed(partition_key(name), "", schemas.STATIC_SCHEMAS[name].empty_table())
    if name in schemas.TABLES:
        if only is not None:
            reason = (
                "its rows are in its output folder"
                if name in schemas.JOB_TABLES
                else "it failed before it had any"
            )
            ids = only if isinstance(only, str) else ", ".join(only)
            raise StoreError(f"{ids} has no {name} in {store.root}: {reason}; choose another")
        raise StoreError(f"no rows of {name!r} in {store.root}; its tables are {_tables(store)}")
    raise StoreError(f"no table {name!r} in {store.root}; {suggestion(name, schemas.TABLES)}")


def keyed(key: str, value: str, table: pa.Table) -> pa.Table:
    """Return a part of a table with the key of its partition as the first column."""
    return table.add_column(
        0, pa.field(key, pa.string()), pc.cast(pa.repeat(value, len(table)), pa.string())
    )


def _tables(store: "Store") -> str:
    folder = store.root / "tables"
    return ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "none"
