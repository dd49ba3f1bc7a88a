"""`nnbuild backtest`: which window of labelled days would have given the best models."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.analytics import HtmlOption
from flows.cli.app import TRAIN, JsonOption, StoreOption, app, explicit_options
from flows.cli.console import PlainConsole, print_json, print_line, print_table, to_json_row
from flows.cli.run import (
    ConfigOption,
    DatasetOption,
    EpochsOption,
    ModelOption,
)
from flows.cli.settings import load_config, nest_options
from nnbuild.errors import ConfigError

if TYPE_CHECKING:
    from nnbuild.pipeline.backtest import Night
    from nnbuild.store import Store

_HEADINGS = {
    "window": "window",
    "runs": "runs",
    "promoted": "promoted",
    "images": "images of the days that followed",
    "accuracy": "accuracy",
    "difference": "less the best",
    "p_worse": "p",
}
_MAX_WINDOWS = 16


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: nnbuild backtest --config run.toml --from 2026-10-01 --to 2026-10-31 "
    "--window 28,90,all --html backtest.html",
)
def backtest(
    ctx: typer.Context,
    first_day: Annotated[str, typer.Option("--from", metavar="DAY", help="First night.")],
    last_day: Annotated[str, typer.Option("--to", metavar="DAY", help="Last night.")],
    windows: Annotated[
        str | None,
        typer.Option(
            "--window",
            metavar="DAYS",
            help="Windows to compare, in days, separated by commas; all for all days.",
            show_default="dataset.window",
        ),
    ] = None,
    dataset: DatasetOption = "mnist",
    model: ModelOption = "convnet",
    epochs: EpochsOption = None,
    config: ConfigOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting of the runs. May be repeated."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.parquet", help="Write a row for each window and night."),
    ] = None,
    html: HtmlOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Walk forward over past nights on labelled days, and compare windows.

    Runs and champions of the store are not touched; only the days are ingested into it.
    """
    options = nest_options(explicit_options(ctx, dataset=dataset, model=model, epochs=epochs))
    run_config = load_config(options, config, settings or [])
    from nnbuild.config.schema import resolve
    from nnbuild.pipeline.backtest import backtest as walk
    from nnbuild.runtime.date_patterns import parse_day
    from nnbuild.store import Store
    from nnbuild.store.outputs import require_new

    opened = Store(store)
    for path in filter(None, (output, html)):
        require_new(opened.ensure_outside(path))
    resolve(run_config)
    console = PlainConsole(stderr=True)
    result = walk(
        run_config,
        opened,
        parse_day(first_day, "from"),
        parse_day(last_day, "to"),
        windows=_windows(windows, run_config.dataset.window),
        now=datetime.now(UTC),
        on_night=lambda night: console.print_line(_line(night)),
    )
    nights = [each.model_dump() for each in result.nights]
    summary = [each.model_dump() for each in result.windows]
    if output is not None:
        _write_table(opened, output, nights)
    if html is not None:
        from nnbuild.report.comparison import backtest_page
        from nnbuild.store.outputs import write_output

        page = backtest_page(run_config.dataset.name, summary, nights)
        write_output(opened.ensure_outside(html), page.encode())
    if as_json:
        rows = {"windows": summary, "nights": nights}
        print_json({name: [to_json_row(row) for row in each] for name, each in rows.items()})
        return
    from nnbuild.report import text

    print_table([row | {"window": text.window(row["window"])} for row in summary], _HEADINGS, "")
    for row in summary:
        print_line(text.on_window(row))


def _windows(text: str | None, default: int | None) -> list[int | None]:
    """Return the windows to compare.

    Raises:
        ConfigError: One of them is neither a number of days nor `all`.
    """
    if text is None:
        return [default]
    windows: list[int | None] = []
    for each in map(str.strip, text.split(",")):
        days = int(each) if each.isascii() and each.isdigit() and len(each) < 6 else 0
        if each != "all" and not days:
            raise ConfigError(
                f"window {each!r} is neither a number of days nor all", setting="windows"
            )
        windows.append(days or None)
    if len(windows) > _MAX_WINDOWS:
        raise ConfigError(
            f"{len(windows)} windows, expected at most {_MAX_WINDOWS}", setting="windows"
        )
    return windows


def _line(night: Night) -> str:
    """Describe a night in one line."""
    from nnbuild.report.text import window

    words = f"{night.day}, {window(night.window)}: {night.outcome}: {night.reason}"
    if night.next_correct is None:
        return words
    accuracy = night.next_correct / night.next_images
    return f"{words}; champion on {night.next_day}: {accuracy:.4f}"


def _write_table(store: Store, path: Path, nights: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nnbuild.pipeline.backtest import SCHEMA
    from nnbuild.store.outputs import output_file

    with output_file(store.ensure_outside(path)) as temporary:
        pq.write_table(pa.Table.from_pylist(nights, schema=SCHEMA), temporary)
