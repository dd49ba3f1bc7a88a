"""What commands show: tables, lines, JSON and progress bars, all of it safe for a terminal.

Everything that a command shows goes through this module: text of users holds control characters and
what looks like markup, and messages of libraries hold URLs with credentials.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnbuild.runtime.credentials import mask_credentials
from nnbuild.runtime.text import printable, sanitize

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.progress import TaskID

    from nnbuild.sweep import SweepResult

_UNLIMITED_WIDTH = 1_000_000
_MAX_CELL_WIDTH = 60
_SECONDS_BETWEEN_LINES = 10.0
_STOPPED = "stopped before anything started; nothing was written, run the command again"


class PlainConsole(Console):
    """A console that prints text as it is: no markup, no emoji codes, no colours for numbers.

    Args:
        options: Arguments of `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Stop printing if nobody reads standard error; raise for standard output.

        Rich would end the process, and with it a run whose log somebody stopped watching.

        Raises:
            BrokenPipeError: Nobody reads standard output; `flows.cli.main` then ends quietly.
        """
        self.quiet = True
        if not self.stderr:
            raise BrokenPipeError

    def print_line(self, text: str) -> None:
        """Print one line of any length. On standard error it is lost if nobody reads it."""
        with suppress(OSError) if self.stderr else nullcontext():
            self.print(sanitize(text), soft_wrap=True)


@contextmanager
def exiting_at_once(console: PlainConsole) -> Iterator[None]:
    """Exit on Ctrl-C in this block: nothing has started, so nothing is lost.

    Args:
        console: Console of standard error.
    """
    from nnbuild.runtime import signals

    terminal = os.dup(2)  # importing TensorFlow redirects the descriptor itself for a while

    def print_stopped(_code: int) -> None:
        clear = "\r\x1b[2K\x1b[?25h" if console.is_terminal else ""  # the spinner, and the cursor
        os.write(terminal, f"{clear}nnbuild: {_STOPPED}\n".encode())

    try:
        with signals.exiting_at_once(print_stopped):
            yield
    finally:
        os.close(terminal)


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print one line, to standard output unless a file is given, without wrapping or cutting."""
    print(sanitize(text), file=file, flush=True)


def print_values(values: Mapping[str, Any]) -> None:
    """Print a name and a value on each line."""
    for name, value in values.items():
        print_line(f"{name:14} {value}")


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line; JSON escapes control characters itself."""
    from flows.cli import json_values

    sys.stdout.write(f"{json_values.dumps(_mask(value))}\n")
    sys.stdout.flush()


def _mask(value: Any) -> Any:
    if isinstance(value, str):
        return mask_credentials(value)
    if isinstance(value, dict):
        return {key: _mask(each) for key, each in value.items()}
    return [_mask(each) for each in value] if isinstance(value, (list, tuple)) else value


def to_json_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON holds it: NaN and infinite numbers are null, times ISO 8601 text."""
    from flows.cli import json_values

    return {name: json_values.plain(value) for name, value in row.items()}


def escape_for_terminal(value: Any) -> Any:
    """Return a value for CSV on standard output, with control characters escaped in a terminal."""
    return printable(value) if isinstance(value, str) and sys.stdout.isatty() else value


def print_table(
    rows: Sequence[dict[str, Any] | Sequence[Any]],
    columns: Mapping[str, str] | Sequence[str],
    empty_message: str,
) -> None:
    """Print rows as a table; in a terminal long text is folded, and wide tables wrap.

    Args:
        rows: One dictionary per row, in which a missing column is shown as a dash; or one sequence
            per row in the order of the columns, which may then have equal names.
        columns: Names in order, or a mapping of each name to its heading.
        empty_message: Line to print if there are no rows.
    """
    # A table takes the width that it needs; Rich would squeeze it into the width of the terminal.
    console = PlainConsole(width=_UNLIMITED_WIDTH)
    max_width = _MAX_CELL_WIDTH if sys.stdout.isatty() else None
    if not rows:
        console.print_line(empty_message)
        return
    headings = columns.values() if isinstance(columns, dict) else columns
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(Text(sanitize(str(heading))), overflow="fold", max_width=max_width)
    for row in rows:
        values = map(row.get, columns) if isinstance(row, dict) else row
        table.add_row(*(Text(_format_cell(value)) for value in values))
    console.print(table)


def _format_cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else sanitize(str(value))


def _format_metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{sanitize(name)} {value:.4g}" for name, value in metrics.items())


class LogDisplay:
    """Progress as lines on standard error, for log files, pipes and CI."""

    def __init__(self, console: PlainConsole) -> None:
        self._console = console
        self._scoring_since = self._last_line = 0.0
        self.committed_run: str | None = None
        self.sweep_result: SweepResult | None = None

    def waiting(self, _text: str) -> AbstractContextManager[object]:
        """Return a context for something that takes seconds; a log does not mention it."""
        return nullcontext()

    def note(self, text: str) -> None:
        """Print a remark."""
        self._console.print_line(text)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        """Print the metrics of an epoch."""
        self.note(f"epoch {epoch}/{epochs}  {_format_metrics(metrics)}  {seconds:.1f} s")

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Skip steps, which are too many for a log."""

    def download(self, file: str, done: int, total: int | None) -> None:
        """Print one line for a download when it is complete."""
        if done == total:
            self.note(f"downloaded {file}, {done:,} bytes")

    def scored(self, done: int, total: int, rate: float) -> None:
        """Print the progress of a scoring job every few seconds, and at its end if it was long."""
        now = time.monotonic()
        self._scoring_since = self._scoring_since or now
        self._last_line = self._last_line or now
        if now - self._last_line > _SECONDS_BETWEEN_LINES or (
            done == total and now - self._scoring_since > _SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
            left = (total - done) / rate
            self.note(f"scored {done:,} of {total:,} rows  {rate:,.0f} rows/s  {left:.0f} s left")

    def committed(self, run_id: str) -> None:
        """Remember the run, whose flow run can still fail to be reported to Prefect's server."""
        self.committed_run = run_id

    def sweep_finished(self, result: SweepResult) -> None:
        """Remember the result, as `committed` does for a run."""
        self.sweep_result = result

    def close(self) -> None:
        """Release nothing."""


class TerminalDisplay(LogDisplay):
    """Progress as the same lines, with a moving bar below them."""

    def __init__(self, console: PlainConsole) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        super().__init__(console)
        self._work = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._downloads = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            console=console,
            transient=True,
        )
        self._bar: TaskID | None = None
        self._files: dict[str, TaskID] = {}

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Return a context that shows a spinner."""
        return self._console.status(text)

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Move the bar of a fit."""
        if self._bar is None:
            self._work.start()
            self._bar = self._work.add_task("fit", total=epochs * steps, metrics="")
        self._work.update(
            self._bar,
            completed=(epoch - 1) * steps + done,
            description=f"epoch {epoch}/{epochs}",
            metrics=_format_metrics(metrics),
        )
        if epoch == epochs and done == steps:
            self._work.stop()
            self._work.remove_task(self._bar)
            self._bar = None  # a sweep fits again

    def download(self, file: str, done: int, total: int | None) -> None:
        """Move the bar of a file."""
        if file not in self._files:
            self._downloads.start()
            self._files[file] = self._downloads.add_task(sanitize(file), total=total)
        self._downloads.update(self._files[file], completed=done, total=total)
        if done == total:
            self._downloads.stop()
        super().download(file, done, total)

    def scored(self, done: int, total: int, rate: float) -> None:
        """Move the bar of a scoring job."""
        if self._bar is None:
            self._work.start()
            self._bar = self._work.add_task("scoring", total=total, metrics="")
        rows = f"{done:,} of {total:,} rows  {rate:,.0f} rows/s"
        self._work.update(self._bar, completed=done, metrics=rows)

    def close(self) -> None:
        """Remove the bars; the terminal may be gone, and the run has ended."""
        with suppress(Exception):
            self._work.stop()
            self._downloads.stop()


def display_for(console: PlainConsole) -> LogDisplay:
    """Return a live display for a terminal, and lines for anything else."""
    return TerminalDisplay(console) if console.is_terminal else LogDisplay(console)
