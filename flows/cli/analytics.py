"""`nnbuild sql`: one SELECT over the store's tables."""

import csv as csv_format
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from flows import jsonvalues
from flows.printing import for_output, print_line, print_table
from nnbuild.errors import ConfigError, NnbuildError
from nnbuild.runtime.cgroups import memory_growth_limited
from nnbuild.runtime.signals import interrupted, sigterm_as_exception
from nnbuild.store import Store
from nnbuild.store.outputs import is_stdout
from nnbuild.store.query import Answer, Limits
from nnbuild.store.query_output import write_parquet

_BESIDE_DUCKDB = 2**30  # bytes for what DuckDB does not count: Arrow, Python, the output
_LONGEST_CELL = 10_000
_COUNTING = 2.0  # seconds to find out how many rows a table leaves out


@dataclass(frozen=True)
class Form:
    """How the answer is wanted: as CSV, in a Parquet file, as JSON, or else as a table.

    Attributes:
        table_rows: Most rows of a table.
    """

    csv: bool
    parquet: Path | None
    as_json: bool
    table_rows: int


def sql(statement: str, root: str | None, form: Form, limits: Limits) -> None:
    """Ask, and print the answer or write it.

    Raises:
        ConfigError: The statement cannot be answered, or passes a limit.
        Interrupted: A signal ended it.
    """
    if form.csv + form.as_json + (form.parquet is not None) > 1:
        raise ConfigError("--csv, --parquet and --json exclude each other; give one of them")
    store = Store.open(root)
    target = form.parquet and store.ensure_outside(form.parquet)
    answer = Answer(store, statement, limits)
    growth = memory_growth_limited(limits.memory_bytes + _BESIDE_DUCKDB)
    with _ending(answer, limits), growth, answer:
        if target is not None:
            rows = write_parquet(answer, target)
            print_line(f"{form.parquet}  {rows:,} rows", sys.stderr if is_stdout(target) else None)
        elif form.csv:
            _print_csv(answer)
        elif form.as_json:
            _print_json(answer)
        else:
            _print_table(answer, form.table_rows)


@contextmanager
def _ending(answer: Answer, limits: Limits) -> Iterator[None]:
    """Turn signals and a want of memory into errors, and end the process if the query goes on."""
    try:
        with sigterm_as_exception():
            yield
    except (KeyboardInterrupt, MemoryError, NnbuildError) as error:
        known = _known(error, limits)
        if answer.stuck:  # DuckDB does not look up within one call of some functions
            print_line(f"nnbuild: {known}", sys.stderr)
            os._exit(known.exit_code)
        raise known from error


def _known(error: KeyboardInterrupt | MemoryError | NnbuildError, limits: Limits) -> NnbuildError:
    if isinstance(error, NnbuildError):
        return error
    if isinstance(error, MemoryError):
        return limits.out_of_memory()
    return interrupted(error)


def _rows(answer: Answer) -> Iterator[tuple[Any, ...]]:
    return chain.from_iterable(jsonvalues.rows(batch) for batch in answer)


def _begun(answer: Answer) -> Iterator[tuple[Any, ...]]:
    """Return the rows once the first of them is there: before that nothing should be printed."""
    rows = _rows(answer)
    first = list(islice(rows, 1))
    return chain(first, rows)


def _print_csv(answer: Answer) -> None:
    rows = _begun(answer)
    writer = csv_format.writer(sys.stdout)
    writer.writerow(map(for_output, answer.names))
    writer.writerows((for_output(_text(value)) for value in row) for row in rows)


def _print_json(answer: Answer) -> None:
    """Print one object on one line, a row at a time."""
    rows = _begun(answer)
    names = answer.names
    out = sys.stdout
    out.write(f'{{"columns": {jsonvalues.dumps(names)}, "rows": [')
    for number, row in enumerate(rows):
        values = map(jsonvalues.plain, row)
        out.write(", " * bool(number) + jsonvalues.dumps(dict(zip(names, values, strict=True))))
    out.write("]}\n")
    out.flush()


def _print_table(answer: Answer, most: int) -> None:
    rows = _rows(answer)
    shown = [[_cell(value) for value in row] for row in islice(rows, min(most, sys.maxsize))]
    print_table(shown, answer.names, "no rows")
    if len(shown) == most and (left := _count(rows)):
        note = f"{most:,} rows are shown, {left} left out; see --limit, --csv and --parquet"
        print_line(f"nnbuild: {note}", sys.stderr)


def _count(rows: Iterator[Any]) -> str:
    """Return how many rows there are, or as many as could be counted in a moment; empty if none."""
    counted, until = 0, time.monotonic() + _COUNTING
    try:
        for counted, _ in enumerate(rows, start=1):
            if time.monotonic() > until:
                return f"at least {counted:,}"
    except ConfigError:  # the limits hold for what is shown
        return f"at least {counted:,}"
    return f"{counted:,}" if counted else ""


def _text(value: Any) -> Any:
    """Return a value for CSV: nested ones as JSON."""
    if isinstance(value, (float, str, bool, type(None))):
        return value
    plain = jsonvalues.plain(value)
    return plain if isinstance(plain, (int, str)) else jsonvalues.dumps(plain)


def _cell(value: Any) -> Any:
    """Return a value for a table: text is cut where no screen has room for it."""
    found = _text(value)
    if isinstance(found, str) and len(found) > _LONGEST_CELL:
        return f"{found[:_LONGEST_CELL]}… ({len(found):,} characters)"
    return found
