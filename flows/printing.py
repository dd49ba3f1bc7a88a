"""What commands print: one JSON object, or a table."""

import json
import math
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDE = 1_000_000
_LONGEST = 60


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    print(json.dumps(value, allow_nan=False), flush=True)  # noqa: T201


def jsonable(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON can hold it: NaN and infinite numbers become null, times become text."""
    plain: dict[str, Any] = {name: _plain(value) for name, value in row.items()}
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def print_table(rows: list[dict[str, Any]], columns: Any, nothing: str) -> None:
    """Rows as a table. In a terminal long text is folded; what is wider all the same is left to it to wrap.

    Args:
        rows: one dictionary each; a column that one lacks is shown as a dash.
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
        table.add_row(*(_cell(row.get(name)) for name in columns))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
