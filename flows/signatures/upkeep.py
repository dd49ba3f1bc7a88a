"""`nnbuild doctor` and `version`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.app import Json, Store, app


@app.command(epilog="Example: nnbuild doctor --store ./nnbuild-store")
def doctor(
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="$NNBUILD_DATA_DIR if not given.")
    ] = None,
    repair: Annotated[  # noqa: FBT002
        bool, typer.Option("--repair", help="Clear leftovers, write a lost row again.")
    ] = False,
    discard: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="With --repair: give up what waits to be resumed."),
    ] = None,
    dry_run: Annotated[  # noqa: FBT002
        bool, typer.Option("--dry-run", help="With --repair: only list what would be done.")
    ] = False,
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Say what is installed, reachable and writable, and what would make a run fail; or put a store in order."""
    if repair or discard:
        from flows.commands import repair as mending

        mending.repair(store, discard or [], dry_run=dry_run, as_json=as_json)
        return
    if dry_run:
        raise typer.BadParameter("it applies to --repair only", param_hint="--dry-run")
    from flows.commands import doctor as command

    command.doctor(store, data_dir, as_json=as_json)


@app.command(epilog="Example: nnbuild version")
def version() -> None:
    """Print the version."""
    from nnbuild.runtime.environment import code_version

    typer.echo(code_version())
