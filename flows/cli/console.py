"""What commands print: one JSON object, a table, or lines; all of it safe for a terminal.

Everything that a command shows goes through this module: text of users holds control characters and
what looks like markup, and messages of libraries hold URLs with credentials.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import jsonvalues
from nnbuild.runtime.credentials import mask_credentials
from nnbuild.runtime.text import printable, sanitize

_WIDE = 1_000_000
_LONGEST = 60


class PlainConsole(Console):
    """A console that prints text as it is: no markup, no emoji codes, no colours for numbers.

    Args:
        options: As for `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Say nothing more where nobody reads standard error; let `flows.cli` end quietly otherwise.

        Rich would end the process, and with it a run whose log somebody stopped watching.
        """
        self.quiet = True
        if not self.stderr:
            raise BrokenPipeError

    def print_line(self, text: str) -> None:
        """Print one line, however long it is. On standard error it is lost where nobody reads it."""
        with suppress(OSError) if self.stderr else nullcontext():
            self.print(sanitize(text), soft_wrap=True)


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print one line, to standard output if no file is given; it is never wrapped or cut."""
    print(sanitize(text), file=file, flush=True)


def print_values(values: Mapping[str, Any]) -> None:
    """Print a name and a value on each line."""
    for name, value in values.items():
        print_line(f"{name:14} {value}")


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line of standard output. JSON escapes control characters itself."""
    print(jsonvalues.dumps(_masked(value)), flush=True)  # noqa: T201


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask_credentials(value)
    if isinstance(value, dict):
        return {key: _masked(each) for key, each in value.items()}
    return [_masked(each) for each in value] if isinstance(value, (list, tuple)) else value


def jsonable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON can hold it: NaN and infinite numbers become null, times ISO 8601 text."""
    return {name: jsonvalues.plain(value) for name, value in row.items()}


def for_output(value: Any) -> Any:
    """Return a value of a CSV file for standard output: as it is, unless a terminal would obey it."""
    return printable(value) if isinstance(value, str) and sys.stdout.isatty() else value


def print_table(rows: Sequence[dict[str, Any] | Sequence[Any]], columns: Any, nothing: str) -> None:
    """Rows as a table. In a terminal long text is folded; what is wider all the same is left to it to wrap.

    Args:
        rows: one dictionary each, a column that one lacks is shown as a dash; or one sequence each, in the order of
            the columns, which may have the same name then.
        columns: their names, in order; or of each name, what is written above it.
        nothing: what is said when there are no rows.
    """
    # A table takes what it needs, and rich would squeeze it into what there is.
    console = PlainConsole(width=_WIDE)
    longest = _LONGEST if sys.stdout.isatty() else None
    if not rows:
        console.print_line(nothing)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        heading = columns[name] if isinstance(columns, dict) else name
        table.add_column(Text(sanitize(str(heading))), overflow="fold", max_width=longest)
    for row in rows:
        values = map(row.get, columns) if isinstance(row, dict) else row
        table.add_row(*(Text(_cell(value)) for value in values))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else sanitize(str(value))
