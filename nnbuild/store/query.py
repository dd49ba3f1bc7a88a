"""SQL over the tables: DuckDB sees the rows of committed runs and jobs, and no other data."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar

import duckdb
import pyarrow as pa

from nnbuild.errors import ConfigError, InputError, StoreError, one_line
from nnbuild.runtime import environment
from nnbuild.runtime.cgroups import total_memory
from nnbuild.runtime.signals import deferred_signals
from nnbuild.store import schemas, views
from nnbuild.store.query_views import quoted, register
from nnbuild.store.store import Store

if TYPE_CHECKING:
    from duckdb.sqltypes import DuckDBPyType

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
_SHOWN_AS_TEXT = frozenset(
    {"bit", "bignum", "varint", "time with time zone", "uhugeint", "union", "variant"}
)
_NESTED = frozenset({"struct", "map", "list", "array"})


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
            raise ConfigError(_not_one_select([each.type.name for each in statements]))
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


def _not_one_select(kinds: Sequence[str]) -> str:
    """Return why statements of these kinds are refused."""
    if list(kinds) == ["MULTI"]:  # DuckDB would create a type of the column's values first
        return (
            "the SQL has a PIVOT without its values, which would create a type, but the tables are "
            "read-only; list the values: PIVOT … ON column IN ('a', 'b') USING …"
        )
    found = ", ".join(kinds) or "nothing"
    return f"the SQL is {found}, expected one SELECT; the tables are read-only"


def _with_arrow_types(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Return a relation with the values that Arrow has no type for cast to text."""
    casts = [_type_with_text(kind) for kind in relation.types]
    if not any(casts):
        return relation
    columns = []
    for place, (name, cast) in enumerate(zip(relation.columns, casts, strict=True), start=1):
        value = f"CAST(#{place} AS {cast})" if cast else f"#{place}"
        columns.append(f"{value} AS {quoted(name)}")
    return relation.project(", ".join(columns))


def _type_with_text(kind: "DuckDBPyType") -> str | None:
    """Return a type as SQL, with text in place of what Arrow has no type for; None if it has."""
    if kind.id in _SHOWN_AS_TEXT:
        return "VARCHAR"
    if kind.id == "tuple":  # DuckDB does not give access to its parts
        return "VARCHAR" if any(each.upper() in str(kind) for each in _SHOWN_AS_TEXT) else None
    if kind.id not in _NESTED:
        return None
    children = kind.children[:1] if kind.id == "array" else kind.children  # without its size
    casts = [_type_with_text(child) for _, child in children]
    if not any(casts):
        return None
    return _nested_type(
        kind, [cast or str(child) for cast, (_, child) in zip(casts, children, strict=True)]
    )


def _nested_type(kind: "DuckDBPyType", parts: Sequence[str]) -> str:
    """Return a nested type as SQL, with the types of its parts replaced."""
    if kind.id == "map":
        return f"MAP({', '.join(parts)})"
    if kind.id != "struct":
        return f"{parts[0]}[{kind.children[1][1] if kind.id == 'array' else ''}]"
    names = [name for name, _ in kind.children]
    if "" in names:  # how earlier versions of DuckDB represent a tuple
        return "VARCHAR"
    fields = (f"{quoted(name)} {part}" for name, part in zip(names, parts, strict=True))
    return f"STRUCT({', '.join(fields)})"


def _used_tables(sql: str) -> list[str]:
    """Return the tables that a statement may use: only these are opened, file by file."""
    return [name for name in schemas.TABLES if name in sql.lower()] or list(schemas.TABLES)
