"""SQL over the tables: DuckDB sees the rows of committed runs and jobs, and no other data."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import duckdb
import pyarrow as pa

from nnbuild.errors import ConfigError, InputError, StoreError, one_line
from nnbuild.runtime import environment
from nnbuild.runtime.cgroups import total_memory
from nnbuild.runtime.signals import deferred_signals
from nnbuild.store import schemas, views
from nnbuild.store.store import Store

T = TypeVar("T")

# Set before the statement runs: no files, network, extensions or Python variables; the last one
# forbids to change the others.
_CLOSED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}
_BATCH_ROWS = 2048  # the size of DuckDB's vectors; even a batch of long texts is small
_STOP_SECONDS = 2.0  # in which a query has to stop
_OUT_OF_MEMORY = "Out of Memory Error"
_DAMAGED = "reading the stream registered as"
# Types without an equivalent in Arrow: DuckDB would return their bytes, or lose a part.
_SHOWN_AS_TEXT = ("BIT", "BIGNUM", "VARINT", "TIME WITH TIME ZONE", "UHUGEINT", "UNION")


@dataclass(frozen=True)
class Limits:
    """Limits on the resources of a query.

    Attributes:
        memory: Fraction of the memory of the machine, or of its control group, from 0 to 1.
        timeout: Seconds of computing; the time in which the caller uses the rows does not count.
    """

    memory: float = 0.5
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.memory <= 1:
            raise ConfigError(
                f"memory {self.memory:g} of a query is not a fraction of the machine's memory; "
                "give a number above 0 and up to 1, such as 0.5",
                setting="memory",
                value=self.memory,
            )
        if not self.timeout > 0:
            raise ConfigError(
                f"timeout {self.timeout:g} of a query is not a number of seconds above 0; "
                "give one such as 600",
                setting="timeout",
                value=self.timeout,
            )

    @property
    def memory_bytes(self) -> int:
        """Return the memory limit in bytes."""
        return int(self.memory * total_memory())

    def out_of_memory(self) -> ConfigError:
        """Return the error for a query that needs more memory."""
        return ConfigError(
            f"the query needs more than {self.memory_bytes / 2**30:.2g} GiB of memory, "
            f"{self.memory:g} of this machine's; raise the memory limit, or select less",
            setting="memory",
            value=self.memory,
        )


def query(store: Store, sql: str, limits: Limits | None = None) -> pa.Table:
    """Return the result of one SELECT over the tables of a store.

    Args:
        store: Store to read.
        sql: One statement.
        limits: Limits on its resources; half of the memory and ten minutes if not given.

    Raises:
        ConfigError: The statement does not parse, is not a SELECT, names something that does not
            exist, or exceeds a limit; the message is DuckDB's.
        StoreError: A table cannot be read.
    """
    with Answer(store, sql, limits) as answer:
        return pa.Table.from_batches(answer, answer.schema)


@contextmanager
def connected(
    store: Store, names: Sequence[str] = (), *, memory: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Connect DuckDB to the committed rows of tables, for nnbuild's own queries.

    Args:
        store: Store to read.
        names: Tables to register as views.
        memory: Limit on DuckDB's memory in bytes; half of the machine's if not given. What does
            not fit is written to temporary files.

    Raises:
        StoreError: A table cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="nnbuild-") as folder:
        config: dict[str, Any] = {
            "threads": environment.processors(),
            "memory_limit": f"{memory or Limits().memory_bytes}B",
            "temp_directory": folder,
        }
        with duckdb.connect(config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for name in names:
                register(connection, store, name)
            try:
                yield connection
            except duckdb.Error as error:
                raise StoreError(
                    f"cannot read the tables of {store.root}: {one_line(error)[:500]}; see "
                    "`nnbuild doctor`"
                ) from error


class Answer:
    """The rows of one SELECT as Arrow batches, each computed when it is requested.

    DuckDB computes in a separate thread, so that the caller's thread can react to signals. Nothing
    is written to the disk: a query that exceeds the memory limit fails. Leaving the block stops
    the query.

    Args:
        store: Store to read.
        sql: One statement.
        limits: Limits on its resources.

    Attributes:
        stuck: Whether the query did not stop when it was interrupted.

    Raises:
        ConfigError: As `query`, from every method that computes.
        StoreError: As `query`.
    """

    def __init__(self, store: Store, sql: str, limits: Limits | None = None) -> None:
        self._store, self._sql, self._limits = store, sql, limits or Limits()
        self._seconds_left = self._limits.timeout
        self._connection = duckdb.connect(
            config={
                "threads": environment.processors(),
                "memory_limit": f"{self._limits.memory_bytes}B",
                "temp_directory": "",
            }
        )
        self._parts: list[views.Part] = []
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._last: Future[Any] | None = None
        self.stuck = False

    def __enter__(self) -> Self:
        """Start the thread; nothing is computed yet."""
        threading.Thread(target=self._work, name="nnbuild-sql", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the query; signals are deferred until it has stopped."""
        with deferred_signals():
            self.close()

    @cached_property
    def _reader(self) -> pa.RecordBatchReader:
        return self._call(self._open)

    @property
    def schema(self) -> pa.Schema:
        """Return the Arrow schema of the batches; several columns may have one name."""
        return self._reader.schema

    @property
    def names(self) -> list[str]:
        """Return the names of the columns, with a number after repeated ones: a, a_1."""
        return distinct(self.schema.names)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of rows without empty ones."""
        reader = self._reader
        while (batch := self._call(lambda: _next(reader))) is not None:
            if batch.num_rows:
                yield batch

    def close(self) -> None:
        """Stop computing."""
        deadline = time.monotonic() + _STOP_SECONDS
        # Repeated, since an interrupt that comes before DuckDB starts computing is lost.
        while self._last is not None and not self._last.done():
            if time.monotonic() > deadline:
                self.stuck = True
                return
            self._connection.interrupt()
            time.sleep(0.02)
        self._calls.put(None)
        vars(self).pop("_reader", None)
        self._connection.close()

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            future, call = work
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  (raised again by the caller)
                future.set_exception(error)

    def _call(self, call: Callable[[], T]) -> T:
        """Call a function in the query's thread, and return its result."""
        future: Future[T] = Future()
        self._last = future
        start = time.monotonic()
        self._calls.put((future, call))
        try:
            return future.result(min(self._seconds_left, threading.TIMEOUT_MAX))
        except TimeoutError as error:
            raise ConfigError(
                f"the query has computed for {self._limits.timeout:g} seconds, its timeout; "
                "raise the timeout, or select less",
                setting="timeout",
                value=self._limits.timeout,
            ) from error
        except (duckdb.Error, pa.ArrowException, MemoryError, OSError) as error:
            raise self._user_error(error) from error
        finally:
            self._seconds_left -= time.monotonic() - start

    def _open(self) -> pa.RecordBatchReader:
        statements = self._connection.extract_statements(self._sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(each.type.name for each in statements) or "nothing"
            raise ConfigError(f"the SQL is {kinds}, expected one SELECT; the tables are read-only")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._parts = views.read_again_if_deleted(self._register_tables)
        while self._deleted_ids():  # some tables may have the rows of a run, and others not
            self._parts = views.read_again_if_deleted(self._register_tables)
        for setting, value in _CLOSED.items():
            self._connection.execute(f"SET {setting} = {value}")
        relation = self._connection.sql(statements[0].query)
        return _with_arrow_types(relation).to_arrow_reader(_BATCH_ROWS)

    def _register_tables(self) -> list[views.Part]:
        """Register the tables that the statement may use, and return their files."""
        names = _used_tables(self._sql)
        return [part for name in names for part in register(self._connection, self._store, name)]

    def _user_error(self, error: Exception) -> InputError:
        message = one_line(error)
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY in message:
            return self._limits.out_of_memory()
        if _DAMAGED in message or isinstance(error, FileNotFoundError):
            if deleted := self._deleted_ids():
                return StoreError(
                    f"{', '.join(sorted(deleted))} was deleted while the query ran; repeat it"
                )
            return StoreError(
                f"cannot read the tables of {self._store.root}: {message[:500]}; "
                "restore them from a copy"
            )
        tables = ", ".join(sorted(schemas.TABLES))
        return ConfigError(f"DuckDB refuses the SQL: {message[:500]}; the tables are {tables}")

    def _deleted_ids(self) -> set[str]:
        """Return the IDs of the runs and jobs that were deleted while the query ran."""
        by_table: dict[str, list[views.Part]] = {}
        for part in self._parts:
            by_table.setdefault(part.table, []).append(part)
        return set().union(*(views.deleted_ids(self._store, each) for each in by_table.values()))


def _next(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None


def distinct(names: Sequence[str]) -> list[str]:
    """Return names with a number after repeated ones: a, a_1.

    Args:
        names: Names in order; the first of several equal ones is unchanged.
    """
    taken, unique = set(names), []
    for place, name in enumerate(names):
        new = name
        if name in names[:place]:
            new = next(each for number in count(1) if (each := f"{name}_{number}") not in taken)
        taken.add(new)
        unique.append(new)
    return unique


def _with_arrow_types(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Return a relation with the columns that Arrow has no type for cast to text."""
    lost = [str(kind).startswith(_SHOWN_AS_TEXT) for kind in relation.types]
    if not any(lost):
        return relation
    columns = []
    for place, (name, cast) in enumerate(zip(relation.columns, lost, strict=True), start=1):
        value = f"CAST(#{place} AS VARCHAR)" if cast else f"#{place}"
        columns.append(f"{value} AS {quoted(name)}")
    return relation.project(", ".join(columns))


def _used_tables(sql: str) -> list[str]:
    """Return the tables that a statement may use: only these are opened, file by file."""
    return [name for name in schemas.TABLES if name in sql.lower()] or list(schemas.TABLES)


def register(
    connection: Any,
    store: Store,
    name: str,
    *,
    only: Sequence[str] | None = None,
    alias: str | None = None,
) -> list[views.Part]:
    """Register the committed rows of a table as a view that is read lazily.

    Args:
        connection: DuckDB connection.
        store: Store to read.
        name: Name of the table.
        only: IDs of the runs or jobs; all of them if not given.
        alias: Name of the view; that of the table if not given.

    Returns:
        The files with the rows.
    """
    parts = views.committed_parts(store, name, only)
    alias = alias or name
    if not parts:
        schema = schemas.STATIC_SCHEMAS.get(name, schemas.predictions(2))
        key = schemas.partition_key(name)
        connection.register(alias, views.keyed(key, "", schema.empty_table()))
        return parts
    view = views.TableView(name, parts)
    groups: dict[Any, list[views.Part]] = {}
    for schema, found in view.scans():
        groups.setdefault(_readable(schema), []).extend(found)
    if len(groups) == 1:
        schema, found = groups.popitem()
        connection.register(alias, views.dataset(found, schema))
        return parts
    # By position: DuckDB treats names that differ only by case as one name.
    columns = [f"#1 AS {quoted(view.key)}"]
    for place, (column, kind) in enumerate(view.types.items(), start=2):
        value = f"CAST(#{place} AS VARCHAR)" if kind is None else f"#{place}"
        columns.append(f"{value} AS {quoted(column)}")
    selects = []
    for number, (schema, found) in enumerate(groups.items(), start=1):
        connection.register(f"{alias} part {number}", views.dataset(found, schema))
        # The names are quoted, since they come from the files of the store.
        selects.append(f'SELECT {", ".join(columns)} FROM "{alias} part {number}"')
    union = " UNION ALL ".join(selects)
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(alias)} AS {union}")
    return parts


_FILE = "nnbuild: file"  # hardly the name of a column that a user carries through


def register_numbered(
    connection: Any,
    store: Store,
    name: str,
    numbers: Mapping[str, int],
    *,
    alias: str,
    columns: Sequence[str],
) -> list[str]:
    """Register the rows of some runs or jobs, with a number in the column `part` for each.

    DuckDB reads local files itself, many times faster than through Arrow: the number of a file is
    one value for all of its rows, and its columns may differ from those of other files.

    Args:
        connection: DuckDB connection.
        store: Store to read.
        name: Name of the table.
        numbers: Number of each run or job, by its ID.
        alias: Name of the view.
        columns: Columns of the view; those that no file has are left out.

    Returns:
        The columns that the view has.
    """
    parts = views.committed_parts(store, name, list(numbers)) if numbers else []
    files = [str(each.path) for each in parts]
    if not files or store.is_remote or any(set(each) & set("*?[") for each in files):
        source, key, values = quoted(f"{alias} rows"), schemas.partition_key(name), list(numbers)
        register(connection, store, name, only=values, alias=f"{alias} rows")
    else:
        listed = ", ".join("'{}'".format(each.replace("'", "''")) for each in files)
        source = (
            f"read_parquet([{listed}], filename = '{_FILE}', union_by_name = true, "
            "hive_partitioning = false)"
        )
        key, values = _FILE, files
        numbers = {path: numbers[part.value] for path, part in zip(files, parts, strict=True)}
    known = {row[0] for row in connection.execute(f"describe from {source}").fetchall()}
    found = [each for each in columns if each in known]
    table = pa.table({"key": pa.array(values, pa.string()), "part": [numbers[v] for v in values]})
    connection.register(f"{alias} parts", table)
    selected = "".join(f"s.{quoted(each)}, " for each in found)
    connection.execute(
        f"create temp view {alias} as select {selected}p.part from {source} s "
        f'join "{alias} parts" p on p.key = s.{quoted(key)}'
    )
    return found


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def _readable(schema: pa.Schema) -> pa.Schema:
    """Return a schema with types that DuckDB supports."""
    for place, field in enumerate(schema):
        if pa.types.is_float16(field.type):
            schema = schema.set(place, field.with_type(pa.float32()))
        elif pa.types.is_decimal256(field.type):
            schema = schema.set(place, field.with_type(pa.string()))
    return schema
