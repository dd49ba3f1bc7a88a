"""`nnbuild serve`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.app import Store, app


@app.command(
    epilog='Example: nnbuild serve --cron "0 3 * * *" --timezone Europe/Berlin --config run.toml'
)
def serve(
    cron: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CRON",
            help="When, in five fields; 0 3 * * * if nothing is given. May be repeated.",
        ),
    ] = None,
    interval: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Every so many seconds instead.")
    ] = None,
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Of the crons and of {date}, such as Europe/Berlin.")
    ] = "UTC",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings of the runs.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PLAN.toml", help="Several schedules, each with settings of its own."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=1, help="End a run that takes longer; no limit if not given."
        ),
    ] = None,
    collision: Annotated[
        str,
        typer.Option(metavar="enqueue|cancel-new", help="A run that is due while another runs."),
    ] = "enqueue",
    overtaken: Annotated[
        str,
        typer.Option(
            metavar="skip|run", help="A late run, when another has begun since it was due."
        ),
    ] = "skip",
    score_input: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|GLOB|URL", help="Score this too; {date} in it is one of the last days."
        ),
    ] = None,
    score_cron: Annotated[
        list[str] | None,
        typer.Option(metavar="CRON", help="When that is scored; 0 5 * * *. May be repeated."),
    ] = None,
    score_settings: Annotated[
        list[str] | None,
        typer.Option("--score-set", metavar="KEY=VALUE", help="Any setting of the scoring."),
    ] = None,
    score_days: Annotated[
        int, typer.Option(metavar="N", min=1, max=366, help="How many days {date} goes back; 7.")
    ] = 7,
    retrain_on_drift: Annotated[  # noqa: FBT002
        bool,
        typer.Option("--retrain-on-drift", help="Answer drift of what is scored by a retraining."),
    ] = False,
    store: Store = None,
) -> None:
    """Serve the scheduled retraining and scoring, one run of each at a time."""
    from flows.commands import serve as command
    from flows.commands.serve_scores import Scoring

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
        scoring=Scoring(score_input, score_cron or [], score_settings or [], score_days),
        retrain_on_drift=retrain_on_drift,
    )
