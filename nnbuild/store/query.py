"""SQL over the tables: DuckDB sees the rows of committed runs and jobs, and nothing else of the machine."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
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

# Before the statement runs: no file, no network, no extension, no Python variable, and no way back.
_CLOSED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}
_BATCH_ROWS = 2048  # DuckDB's own vectors: a batch of long texts stays small
_PATIENCE = 2.0  # seconds that a query gets to stop
_OUT_OF_MEMORY = "Out of Memory Error"
_DAMAGED = "reading the stream registered as"
# Types that Arrow has no equal of: DuckDB would hand out their bytes, or lose a part.
_SHOWN_AS_TEXT = ("BIT", "BIGNUM", "VARINT", "TIME WITH TIME ZONE", "UHUGEINT", "UNION")


@dataclass(frozen=True)
class Limits:
    """What a query may take of the machine.

    Attributes:
        memory: Share of the machine's memory, or of its control group's, from 0 to 1.
        timeout: Seconds to compute; the time in which the caller uses the rows does not count.
    """

    memory: float = 0.5
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.memory <= 1:
            raise ConfigError(
                f"memory {self.memory:g} of a query is not a share of the machine's; "
                "give a number above 0 and up to 1, such as 0.5"
            )
        if not self.timeout > 0:
            raise ConfigError(
                f"timeout {self.timeout:g} of a query is not a number of seconds above 0; "
                "give one such as 600"
            )

    @property
    def memory_bytes(self) -> int:
        """The bytes that a query may hold."""
        return int(self.memory * total_memory())

    def out_of_memory(self) -> ConfigError:
        """Return the error of a query that needs more."""
        return ConfigError(
            f"the query needs more than {self.memory_bytes / 2**30:.2g} GiB of memory, "
            f"{self.memory:g} of this machine's; raise the limit on memory, or ask for less"
        )


def query(store: Store, sql: str, limits: Limits | None = None) -> Any:
    """Return the answer to one SELECT over the store's tables, each of which is a view of its name.

    Args:
        store: Store to read.
        sql: One statement.
        limits: What it may take of the machine; half of the memory and ten minutes if not given.

    Returns:
        An Arrow table.

    Raises:
        ConfigError: The statement does not parse, is no SELECT, asks for something that does not
            exist, or passes a limit; the message is DuckDB's.
        StoreError: A table cannot be read.
    """
    with Answer(store, sql, limits) as answer:
        return pa.Table.from_batches(answer, answer.schema)


class Answer:
    """The rows of one SELECT: Arrow batches, each computed when it is asked for.

    DuckDB computes in a thread of its own, so that the caller's thread stays free to hear signals.
    Nothing is written to the disk: what does not fit into the memory limit is refused. Leaving
    the block stops the query.

    Args:
        store: Store to read.
        sql: One statement.
        limits: What it may take of the machine.

    Attributes:
        stuck: Whether the query went on computing when it was told to stop.

    Raises:
        ConfigError: From whatever computes, as `query` does.
        StoreError: As `query` does.
    """

    def __init__(self, store: Store, sql: str, limits: Limits | None = None) -> None:
        self._store, self._sql, self._limits = store, sql, limits or Limits()
        self._left = self._limits.timeout
        self._connection = duckdb.connect(
            config={
                "threads": environment.processors(),
                "memory_limit": f"{self._limits.memory_bytes}B",
                "temp_directory": "",
            }
        )
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._last: Future[Any] | None = None
        self.stuck = False

    def __enter__(self) -> Self:
        """Start the thread; nothing is computed yet."""
        threading.Thread(target=self._work, name="nnbuild-sql", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the query. A signal that comes now is too late to matter."""
        with deferred_signals():
            self.close()

    @cached_property
    def _reader(self) -> Any:
        return self._done(self._open)

    @property
    def schema(self) -> Any:
        """The Arrow schema of the batches; columns may have the same name."""
        return self._reader.schema

    @property
    def names(self) -> list[str]:
        """The columns' names, with a number after each that occurred before: a, a_1."""
        return distinct(self.schema.names)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of rows, none of them empty."""
        reader = self._reader
        while (batch := self._done(lambda: _next(reader))) is not None:
            if batch.num_rows:
                yield batch

    def close(self) -> None:
        """Stop computing."""
        deadline = time.monotonic() + _PATIENCE
        # Again and again: an interrupt that comes before DuckDB begins is lost.
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
            except BaseException as error:  # noqa: BLE001  (it is raised where the result is asked for)
                future.set_exception(error)

    def _done(self, call: Callable[[], T]) -> T:
        """Return what a call in the query's thread returns, as soon as it does."""
        future: Future[T] = Future()
        self._last = future
        began = time.monotonic()
        self._calls.put((future, call))
        try:
            return future.result(min(self._left, threading.TIMEOUT_MAX))
        except TimeoutError as error:
            raise ConfigError(
                f"the query has computed for {self._limits.timeout:g} seconds, its timeout; "
                "raise the timeout, or ask for less"
            ) from error
        except (duckdb.Error, pa.ArrowException, MemoryError, OSError) as error:
            raise self._translated(error) from error
        finally:
            self._left -= time.monotonic() - began

    def _open(self) -> Any:
        statements = self._connection.extract_statements(self._sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(each.type.name for each in statements) or "nothing"
            raise ConfigError(f"the SQL is {kinds}, expected one SELECT; the tables are only read")
        self._connection.execute("SET TimeZone = 'UTC'")
        for name in _named(self._sql):
            _register(self._connection, self._store, name)
        for setting, value in _CLOSED.items():
            self._connection.execute(f"SET {setting} = {value}")
        relation = self._connection.sql(statements[0].query)
        return _as_arrow_has(relation).to_arrow_reader(_BATCH_ROWS)

    def _translated(self, error: Exception) -> InputError:
        message = one_line(error)
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY in message:
            return self._limits.out_of_memory()
        if _DAMAGED in message:
            return StoreError(
                f"cannot read the tables of {self._store.root}: {message[:500]}; "
                "restore them from a copy"
            )
        return ConfigError(f"DuckDB refuses the SQL: {message[:500]}; the tables are {_names()}")


def _next(reader: Any) -> Any | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None


def distinct(names: Sequence[str]) -> list[str]:
    """Return names with a number after each that occurred before: a, a_1.

    Args:
        names: In order; the first of each name keeps it.
    """
    taken, found = set(names), []
    for place, name in enumerate(names):
        new = name
        if name in names[:place]:
            new = next(each for number in count(1) if (each := f"{name}_{number}") not in taken)
        taken.add(new)
        found.append(new)
    return found


def _as_arrow_has(relation: Any) -> Any:
    """Return a relation with the columns that Arrow has no type for cast to text."""
    lost = [str(kind).startswith(_SHOWN_AS_TEXT) for kind in relation.types]
    if not any(lost):
        return relation
    columns = []
    for place, (name, cast) in enumerate(zip(relation.columns, lost, strict=True), start=1):
        value = f"CAST(#{place} AS VARCHAR)" if cast else f"#{place}"
        columns.append(f"{value} AS {_quoted(name)}")
    return relation.project(", ".join(columns))


def _named(sql: str) -> list[str]:
    """Return the tables that a statement may ask for: opening one means to look into each of its files."""
    return [name for name in schemas.TABLES if name in sql.lower()] or list(schemas.TABLES)


def _names() -> str:
    return ", ".join(sorted(schemas.TABLES))


def _register(connection: Any, store: Store, name: str) -> None:
    """Let statements see the committed rows of a table, read as far as a statement needs them."""
    parts = views.committed_parts(store, name)
    if not parts:
        schema = schemas.STATIC_SCHEMAS.get(name, schemas.predictions(2))
        key = views.partition_key(name)
        connection.register(name, views.keyed(key, "", schema.empty_table()))
        return
    view = views.TableView(name, parts)
    groups: dict[Any, list[views.Part]] = {}
    for schema, found in view.scans():
        groups.setdefault(_readable(schema), []).extend(found)
    if len(groups) == 1:
        schema, found = groups.popitem()
        connection.register(name, views.dataset(found, schema))
        return
    # By their places: names that differ by case only are one name to DuckDB.
    columns = [f"#1 AS {_quoted(view.key)}"]
    for place, (column, kind) in enumerate(view.types.items(), start=2):
        value = f"CAST(#{place} AS VARCHAR)" if kind is None else f"#{place}"
        columns.append(f"{value} AS {_quoted(column)}")
    selects = []
    for number, (schema, found) in enumerate(groups.items(), start=1):
        connection.register(f"{name} part {number}", views.dataset(found, schema))
        # The names are quoted: they are those of files that the store holds.
        selects.append(f'SELECT {", ".join(columns)} FROM "{name} part {number}"')  # noqa: S608
    connection.execute(f"CREATE TEMP VIEW {name} AS {' UNION ALL '.join(selects)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _readable(schema: Any) -> Any:
    """Return a schema in which DuckDB knows every type."""
    for place, field in enumerate(schema):
        if pa.types.is_float16(field.type):
            schema = schema.set(place, field.with_type(pa.float32()))
        elif pa.types.is_decimal256(field.type):
            schema = schema.set(place, field.with_type(pa.string()))
    return schema
