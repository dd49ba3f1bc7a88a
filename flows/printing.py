"""What commands print: one JSON object, or a table."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flows import jsonvalues

_WIDE = 1_000_000
_LONGEST = 60


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    print(jsonvalues.dumps(value), flush=True)  # noqa: T201


def jsonable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON can hold it: NaN and infinite numbers become null, times ISO 8601 text."""
    return {name: jsonvalues.plain(value) for name, value in row.items()}


def print_table(rows: Sequence[dict[str, Any] | Sequence[Any]], columns: Any, nothing: str) -> None:
    """Rows as a table. In a terminal long text is folded; what is wider all the same is left to it to wrap.

    Args:
        rows: one dictionary each, a column that one lacks is shown as a dash; or one sequence each, in the order of
            the columns, which may have the same name then.
        columns: their names, in order; or of each name, what is written above it.
        nothing: what is said when there are no rows.
    """
    console = Console(
        width=_WIDE
    )  # a table takes what it needs, and rich would squeeze it into what there is
    longest = _LONGEST if sys.stdout.isatty() else None
    if not rows:
        console.print(nothing)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        heading = columns[name] if isinstance(columns, dict) else name
        table.add_column(heading, overflow="fold", max_width=longest)
    for row in rows:
        values = map(row.get, columns) if isinstance(row, dict) else row
        table.add_row(*map(_cell, values))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
