"""`nnbuild sql`, `compare` and `trends`: questions over many runs."""

from pathlib import Path
from typing import Annotated

import typer

from flows.app import Json, Store, app

Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML file too.")
]


@app.command(
    epilog='Example: nnbuild sql "select model, max(test_accuracy) from runs group by model"'
)
def sql(
    statement: Annotated[
        str, typer.Argument(metavar="SELECT", help="One statement; each table is a view.")
    ],
    csv: Annotated[bool, typer.Option("--csv", help="As CSV on standard output.")] = False,  # noqa: FBT002
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Into a Parquet file.")
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="ROWS", min=1, help="Most rows of the printed table.")
    ] = 1000,
    memory: Annotated[
        float, typer.Option(metavar="SHARE", help="Most memory, as a share of the machine's.")
    ] = 0.5,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Most time to compute the answer.")
    ] = 600.0,
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Query the store with one read-only SQL statement."""
    from flows.commands import sql as command
    from nnbuild.store.query import Limits

    form = command.Form(csv=csv, parquet=parquet, as_json=as_json, table_rows=limit)
    command.sql(statement, store, form, Limits(memory=memory, timeout=timeout))


@app.command(
    epilog="Example: nnbuild compare 20261123T030000000Z-4f2a1c 20261124T030000000Z-0b9d77"
)
def compare(
    run_ids: Annotated[
        list[str],
        typer.Argument(metavar="RUN_ID RUN_ID…", help="The others are held against the first."),
    ],
    html: Html = None,
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Put runs side by side: settings, figures, and the paired test on the same test images."""
    from flows.commands import compare as command

    command.compare(run_ids, store, html=html, as_json=as_json)


@app.command(epilog="Example: nnbuild trends --html trends.html")
def trends(html: Html = None, store: Store = None, as_json: Json = False) -> None:  # noqa: FBT002
    """Show accuracy, loss, calibration and seconds over time, promotions marked."""
    from flows.commands import trends as command

    command.trends(store, html=html, as_json=as_json)
