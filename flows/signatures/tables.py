"""`nnbuild runs`, `history` and `report`: what the store holds."""

from typing import Annotated

import typer

from flows.app import Json, Store, app


@app.command(epilog="Example: nnbuild runs --json")
def runs(store: Store = None, as_json: Json = False) -> None:  # noqa: FBT002
    """List the runs, those that wait to be resumed among them."""
    from flows.commands import tables

    tables.runs(store, as_json=as_json)


@app.command(epilog="Example: nnbuild history 20261123T030000000Z-4f2a1c --wide --csv")
def history(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_ID…]", help="All runs if not given.")
    ] = None,
    wide: Annotated[  # noqa: FBT002
        bool, typer.Option("--wide", help="One row an epoch, one column a metric.")
    ] = False,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV on standard output.")] = False,  # noqa: FBT002
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Show the history of runs: every metric at every epoch."""
    from flows.commands import tables

    tables.history(run_ids or [], store, wide=wide, csv=csv, as_json=as_json)


@app.command(epilog="Example: nnbuild report 20261123T030000000Z-4f2a1c")
def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A committed run.")],
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Make the report of a committed run again, from its tables."""
    from flows.commands import report as command

    command.report(run_id, store, as_json=as_json)
