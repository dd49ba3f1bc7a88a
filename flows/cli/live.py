"""`nnbuild live`: the accuracy of scored images by day or week, and its estimate."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from flows.cli.analytics import LIVE_HEADINGS, HtmlOption, is_printed, write_page
from flows.cli.app import EXPLORE, JsonOption, StoreOption, app
from flows.cli.console import print_json, print_line, print_table, to_json_row
from flows.cli.settings import parse_options

_SHADOW_HEADINGS = {
    "run_id": "run",
    "shadow_run_id": "shadow",
    "period": "period",
    "start": "from",
    "labelled": "labelled",
    "accuracy": "accuracy",
    "shadow_accuracy": "of the shadow",
    "difference": "difference",
    "low": "low",
    "high": "high",
    "p_better": "p better",
    "evidence": "evidence",
}


@app.command(rich_help_panel=EXPLORE, epilog="Example: nnbuild live --by week --html live.html")
def live(
    ctx: typer.Context,
    by: Annotated[Literal["day", "week"], typer.Option(help="Length of a period.")] = "day",
    column: Annotated[
        str | None,
        typer.Option(
            "--slice", metavar="COLUMN", help="Show each value of a column that score has kept."
        ),
    ] = None,
    html: HtmlOption = None,
    margin: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0, max=1, help="Drop of the accuracy that raises no alarm."
        ),
    ] = 0.005,
    rate: Annotated[
        float,
        typer.Option(
            metavar="PROBABILITY", help="Probability that a champion ever raises a false alarm."
        ),
    ] = 0.01,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show live accuracy from labels, its estimate before they arrive, and shadows."""
    from nnbuild.live import (
        LiveConfig,
        alarms,
        measure,
        measure_shadows,
        measure_slices,
        paired_counts,
        write,
        write_shadows,
        write_slices,
    )
    from nnbuild.report.live import live_page, on_alarm, on_shadows
    from nnbuild.store import Store

    config = parse_options(LiveConfig, {"margin": margin, "rate": rate}, ctx.command)
    opened, now = Store.open(store), datetime.now(UTC)
    performance = measure(opened, by, now=now)
    write(opened, performance, by)
    shadows = measure_shadows(opened, paired_counts(opened), by, now=now)
    write_shadows(opened, shadows, by)
    found = alarms(opened, performance, config)
    slices = [] if column is None else measure_slices(opened, column, by, now=now)
    if column is not None:
        write_slices(opened, slices, column, by)
    if html is not None:
        write_page(opened, html, live_page(performance.rows, found, shadows))
    if as_json:
        print_json(
            {
                "store": str(opened.root),
                "rows": [to_json_row(row) for row in performance.rows],
                "slices": [to_json_row(row) for row in slices],
                "alarms": [to_json_row(asdict(alarm)) for alarm in found],
                "shadows": [to_json_row(row) for row in shadows],
            }
        )
        return
    if is_printed(html):
        return
    if column is None:
        none = f"no rows in the table scores of {opened.root}"
        print_table(performance.rows, LIVE_HEADINGS, none)
    else:
        print_table(slices, _headings(column), "")
    if shadows:
        print_line("")
        print_table(shadows, _SHADOW_HEADINGS, "")
    for line in [*map(on_alarm, found), *on_shadows(shadows)]:
        print_line(line)


def _headings(column: str) -> dict[str, str]:
    """Return the headings of a table of slices."""
    known = dict(LIVE_HEADINGS)
    del known["negative_log_likelihood"]
    return {"run_id": known.pop("run_id"), "start": known.pop("start"), "value": column, **known}
