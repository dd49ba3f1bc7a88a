"""`nnbuild serve`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.app import Store, app


@app.command(epilog='Example: nnbuild serve --cron "0 3 * * *" --timezone Europe/Berlin --config run.toml')
def serve(
    cron: Annotated[
        list[str] | None, typer.Option(metavar="CRON", help="When; 0 3 * * * if nothing is given. May be repeated.")
    ] = None,
    interval: Annotated[float | None, typer.Option(metavar="SECONDS", help="Every so many seconds instead.")] = None,
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="Of the cron, such as Europe/Berlin.")] = "UTC",
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings of the runs.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN.toml", help="Several schedules, each with settings of its own.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="End a run that takes longer; no limit if not given.")
    ] = None,
    collision: Annotated[
        str, typer.Option(metavar="enqueue|cancel-new", help="A run that is due while another runs.")
    ] = "enqueue",
    overtaken: Annotated[
        str, typer.Option(metavar="skip|run", help="A late run, when the next one is due already.")
    ] = "skip",
    store: Store = None,
) -> None:
    """Serve the scheduled retraining, one run of the store at a time."""
    from flows.commands import serve as command

    command.serve(
        crons=cron or [],
        interval=interval,
        timezone=timezone,
        path=config,
        overrides=settings or [],
        plan=plan,
        store=store,
        timeout=timeout,
        collision=collision,
        overtaken=overtaken,
    )
