"""`nnbuild champion`, `promote` and `rollback`."""

from typing import Annotated

import typer

from flows.app import Json, Store, app


@app.command(epilog="Example: nnbuild champion")
def champion(store: Store = None, as_json: Json = False) -> None:  # noqa: FBT002
    """Say which run is the champion, and which were before it."""
    from flows.commands import champion as command

    command.champion(store, as_json=as_json)


@app.command(epilog="Example: nnbuild promote 20261123T030000000Z-4f2a1c")
def promote(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN_ID", help="A committed run that succeeded.")
    ],
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Make a run the champion, whatever the gate said."""
    from flows.commands import champion as command

    command.promote(run_id, store, as_json=as_json)


@app.command(epilog="Example: nnbuild rollback")
def rollback(store: Store = None, as_json: Json = False) -> None:  # noqa: FBT002
    """Go back to the champion before this one."""
    from flows.commands import champion as command

    command.rollback(store, as_json=as_json)
