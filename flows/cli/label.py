"""`nnbuild label`: add labels that arrive after scoring."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.app import TRAIN, JsonOption, StoreOption, app, explicit_options
from flows.cli.console import print_json, print_line
from flows.cli.settings import parse_options


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: nnbuild label --input 'labels/date={date}/*.parquet' --id customer_id",
)
def label(
    ctx: typer.Context,
    input: Annotated[
        str,
        typer.Option(
            metavar="PATH|GLOB|URL",
            help="Labels to add: Parquet or CSV file, folder or glob; {date} stands for any day.",
        ),
    ],
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="Column of the IDs.",
            show_default="example_id, example_key, path or id",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            "--label",
            metavar="COLUMN",
            help="Column of the labels: class numbers or names.",
            show_default="label, labels, target or class",
        ),
    ] = None,
    time_column: Annotated[
        str | None,
        typer.Option(
            "--observed-at",
            metavar="COLUMN",
            help="Column of the times at which the labels were observed.",
            show_default="observed_at, else the day of {date}, else now",
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add labels of scored images, whenever they arrive."""
    from nnbuild.live import LabelConfig, ingest
    from nnbuild.store import Store

    columns = explicit_options(
        ctx, id_column=id_column, label_column=label_column, time_column=time_column
    )
    config = parse_options(LabelConfig, {"input": input} | columns, ctx.command)
    done = ingest(config, store)
    if as_json:
        print_json(asdict(done) | {"store": str(Store(store).root)})
        return
    print_line(
        f"{done.labelled:,} labelled, {done.corrected:,} corrected, {done.repeated:,} repeated, "
        f"{done.quarantined:,} quarantined; {done.new_files:,} of {done.files:,} files are new"
    )
    for reason, count in done.reasons.items():
        print_line(f"quarantined {count:,}: {reason}")
