"""`nnbuild sql`, `compare` and `trends`: questions about many runs."""

from __future__ import annotations

import csv as csv_format
import os
import sys
import time
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.app import EXPLORE, JsonOption, StoreOption, app
from flows.cli.console import (
    escape_for_terminal,
    print_json,
    print_line,
    print_table,
    to_json_row,
)
from nnbuild.errors import ConfigError, NnbuildError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nnbuild.store import Store
    from nnbuild.store.query import Answer, Limits

_OVERHEAD_BYTES = 2**30  # of what DuckDB does not count: Arrow, Python, the output
_MAX_CELL_CHARACTERS = 10_000
_SECONDS_TO_COUNT = 2.0  # to find out how many rows a table leaves out

_RUN_HEADINGS = {
    "run_id": "run",
    "model": "model",
    "dataset": "dataset",
    "test_set": "test set",
    "accuracy": "accuracy",
    "loss": "loss",
    "expected_calibration_error": "calibration error",
    "seconds": "seconds",
    "promoted": "promoted",
}
_JOB_HEADINGS = {
    "score_id": "scoring job",
    "run_id": "model of run",
    "rows": "rows",
    "psi": "largest psi",
    "ks": "largest ks",
    "exceeded": "drifted",
}

_SLICE_HEADINGS = {
    "column_name": "column",
    "value": "value",
    "rows": "images",
    "accuracy": "accuracy",
    "accuracy_low": "low",
    "accuracy_high": "high",
    "calibration_error": "calibration error",
    "champion_accuracy": "champion",
    "difference": "difference",
    "p_corrected": "p",
}
LIVE_HEADINGS = {
    "run_id": "run",
    "start": "from",
    "rows": "rows",
    "labelled": "labelled",
    "accuracy": "accuracy",
    "accuracy_low": "low",
    "accuracy_high": "high",
    "estimated_accuracy": "estimated",
    "estimated_accuracy_atc": "by ATC",
    "realised_minus_estimated": "difference",
    "expected_calibration_error": "calibration error",
    "negative_log_likelihood": "loss",
}

HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write an HTML page.")
]


@app.command(
    rich_help_panel=EXPLORE,
    epilog='Example: nnbuild sql "select model, max(test_accuracy) from runs group by model"',
)
def sql(
    statement: Annotated[
        str, typer.Argument(metavar="SELECT", help="One statement; each table is a view.")
    ],
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the answer to a Parquet file.")
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="ROWS", min=1, help="Largest number of rows to print as a table.")
    ] = 1000,
    memory: Annotated[
        float,
        typer.Option(metavar="FRACTION", help="Memory limit, as a fraction of the machine's."),
    ] = 0.5,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time limit for computing the answer.")
    ] = 600.0,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Query the store with one read-only SQL statement."""
    from nnbuild.runtime.cgroups import memory_growth_limited
    from nnbuild.store import Store
    from nnbuild.store.outputs import is_stdout
    from nnbuild.store.query import Answer, Limits
    from nnbuild.store.query_output import write_parquet

    limits = Limits(memory=memory, timeout=timeout)
    if csv + as_json + (parquet is not None) > 1:
        raise ConfigError("--csv, --parquet and --json exclude each other; give one of them")
    opened = Store.open(store)
    target = parquet and _output_path(opened, parquet, "parquet")
    answer = Answer(opened, statement, limits)
    growth = memory_growth_limited(limits.memory_bytes + _OVERHEAD_BYTES)
    with _stopped_by_limits(answer, limits), growth, answer:
        if target is not None:
            rows = write_parquet(answer, target)
            print_line(f"{parquet}  {rows:,} rows", sys.stderr if is_stdout(target) else None)
        elif csv:
            _print_csv(answer)
        elif as_json:
            _print_answer_as_json(answer)
        else:
            _print_answer(answer, limit)


@contextmanager
def _stopped_by_limits(answer: Answer, limits: Limits) -> Iterator[None]:
    """Turn signals and lack of memory into errors; exit at once if the query does not stop."""
    from nnbuild.runtime.signals import sigterm_as_exception

    try:
        with sigterm_as_exception():
            yield
    except (KeyboardInterrupt, MemoryError, NnbuildError) as error:
        known = _to_user_error(error, limits)
        if answer.stuck:  # DuckDB does not check for interrupts within one call of some functions
            print_line(f"nnbuild: {known}", sys.stderr)
            os._exit(known.exit_code)
        raise known from error


def _to_user_error(
    error: KeyboardInterrupt | MemoryError | NnbuildError, limits: Limits
) -> NnbuildError:
    from nnbuild.runtime.signals import interrupted

    if isinstance(error, NnbuildError):
        return error
    if isinstance(error, MemoryError):
        return limits.out_of_memory()
    return interrupted(error)


def _rows(answer: Answer) -> Iterator[tuple[Any, ...]]:
    from flows.cli import json_values

    return chain.from_iterable(json_values.rows(batch) for batch in answer)


def _started_rows(answer: Answer) -> Iterator[tuple[Any, ...]]:
    """Return the rows once the first one is computed; nothing should be printed before that."""
    rows = _rows(answer)
    first = list(islice(rows, 1))
    return chain(first, rows)


def _print_csv(answer: Answer) -> None:
    rows = _started_rows(answer)
    writer = csv_format.writer(sys.stdout)
    writer.writerow(map(escape_for_terminal, answer.names))
    writer.writerows((escape_for_terminal(_csv_value(value)) for value in row) for row in rows)


def _print_answer_as_json(answer: Answer) -> None:
    """Print one object on one line, a row at a time."""
    from flows.cli import json_values

    rows = _started_rows(answer)
    names = answer.names
    out = sys.stdout
    out.write(f'{{"columns": {json_values.dumps(names)}, "rows": [')
    for number, row in enumerate(rows):
        values = map(json_values.plain, row)
        out.write(", " * bool(number) + json_values.dumps(dict(zip(names, values, strict=True))))
    out.write("]}\n")
    out.flush()


def _print_answer(answer: Answer, max_rows: int) -> None:
    rows = _rows(answer)
    shown = [[_cell(value) for value in row] for row in islice(rows, min(max_rows, sys.maxsize))]
    print_table(shown, answer.names, "no rows")
    if len(shown) == max_rows and (left := _count(rows)):
        note = f"{max_rows:,} rows are shown, {left} left out; see --limit, --csv and --parquet"
        print_line(f"nnbuild: {note}", sys.stderr)


def _count(rows: Iterator[Any]) -> str:
    """Return the number of rows, a lower bound if counting takes long, or nothing for none."""
    counted, until = 0, time.monotonic() + _SECONDS_TO_COUNT
    try:
        for counted, _ in enumerate(rows, start=1):
            if time.monotonic() > until:
                return f"at least {counted:,}"
    except ConfigError:  # a limit was exceeded; limits apply to the printed rows
        return f"at least {counted:,}"
    return f"{counted:,}" if counted else ""


def _csv_value(value: Any) -> Any:
    """Return a value for CSV: nested values as JSON."""
    from flows.cli import json_values

    if isinstance(value, (float, str, bool, type(None))):
        return value
    plain = json_values.plain(value)
    return plain if isinstance(plain, (int, str)) else json_values.dumps(plain)


def _cell(value: Any) -> Any:
    """Return a value for a table: text longer than any screen is cut."""
    text = _csv_value(value)
    if isinstance(text, str) and len(text) > _MAX_CELL_CHARACTERS:
        return f"{text[:_MAX_CELL_CHARACTERS]}… ({len(text):,} characters)"
    return text


@app.command(
    rich_help_panel=EXPLORE,
    epilog="Example: nnbuild compare 20261123T030000000Z-4f2a1c 20261124T030000000Z-0b9d77",
)
def compare(
    run_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_ID",
            help="Two or more runs; the others are compared with the first. champion or "
            "champion:DATASET stands for one.",
        ),
    ],
    html: HtmlOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare settings and metrics of runs, with a paired test."""
    from nnbuild.report.comparison import comparison_page
    from nnbuild.report.networks import curves_by_network
    from nnbuild.report.text import on_pair
    from nnbuild.store import Store
    from nnbuild.store.analysis import compare as compare_runs
    from nnbuild.store.champion import run_of

    opened = Store.open(store)
    run_ids = [run_of(opened, each) for each in run_ids]
    rows = compare_runs(opened, run_ids)
    if html is not None:
        curves = {
            run_id: curves_by_network(opened.manifest(run_id), opened.read_table("history", run_id))
            for run_id in run_ids
        }
        write_page(opened, html, comparison_page(rows, curves))
    if as_json:
        print_json({"store": str(opened.root), "runs": [to_json_row(row) for row in rows]})
        return
    if is_printed(html):
        return
    names = [name for name in rows[0] if name != "run_id"]
    transposed = [{"metric": name, **{row["run_id"]: row[name] for row in rows}} for name in names]
    print_table(transposed, ("metric", *run_ids), "")
    for row in rows[1:]:
        print_line(on_pair(row))


@app.command(rich_help_panel=EXPLORE, epilog="Example: nnbuild slices champion --by site")
def slices(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN_ID", help="A run, champion, or champion:DATASET.")
    ] = "champion",
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column of dataset.keep, repeatable; all by default."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the accuracy of a run on the slices of its test images."""
    from nnbuild.store import Store
    from nnbuild.store.analysis import slices_of
    from nnbuild.store.champion import run_of

    opened = Store.open(store)
    run_id = run_of(opened, run_id)
    rows = slices_of(opened, run_id, by or [])
    if as_json:
        found = [to_json_row(row) for row in rows]
        print_json({"store": str(opened.root), "run_id": run_id, "slices": found})
        return
    print_table(rows, _SLICE_HEADINGS, "")


@app.command(rich_help_panel=EXPLORE, epilog="Example: nnbuild trends --html trends.html")
def trends(html: HtmlOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show metrics, promotions, drift and live accuracy over time."""
    from nnbuild.report.comparison import trends_page
    from nnbuild.store import Store
    from nnbuild.store.analysis import drift_by_job, live_periods
    from nnbuild.store.analysis import trends as runs_over_time

    opened = Store.open(store)
    rows, jobs, periods = runs_over_time(opened), drift_by_job(opened), live_periods(opened)
    if html is not None:
        write_page(opened, html, trends_page(rows, jobs, periods))
    if as_json:
        tables = {
            "runs": [to_json_row(row) for row in rows],
            "scoring_jobs": [to_json_row(job) for job in jobs],
            "live": [to_json_row(period) for period in periods],
        }
        print_json({"store": str(opened.root), **tables})
        return
    if is_printed(html):
        return
    marked = [row | {"promoted": "yes" if row["promoted"] else None} for row in rows]
    print_table(
        marked, _RUN_HEADINGS, f"no runs in {opened.root} yet; start one with `nnbuild run`"
    )
    if jobs:
        print_line("")
        print_table(
            [job | {"exceeded": job["exceeded"] or None} for job in jobs], _JOB_HEADINGS, ""
        )
    if periods:
        print_line("")
        print_table(periods, LIVE_HEADINGS, "")


def write_page(store: Store, path: Path, page: str) -> None:
    """Write an HTML page outside the store."""
    from nnbuild.store.outputs import write_output

    write_output(_output_path(store, path, "html"), page.encode())


def _output_path(store: Store, path: Path, setting: str) -> Path:
    """Return the path of an output file outside the store; refuse `-`, which is easily misread.

    Args:
        store: Store of the command.
        path: Path that the user gave.
        setting: Name of its argument.
    """
    if str(path) == "-":
        raise ConfigError(
            "- is not the name of an output file; for standard output give /dev/stdout",
            setting=setting,
            value="-",
        )
    return store.ensure_outside(path)


def is_printed(html: Path | None) -> bool:
    """Return whether the HTML page goes to standard output, alone so that it can be piped."""
    from nnbuild.store.outputs import is_stdout

    return html is not None and is_stdout(html)
