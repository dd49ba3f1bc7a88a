"""`nnbuild serve`: wait for schedules, and run each retraining in a process of its own."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.app import TRAIN, StoreOption, app
from flows.cli.console import print_line
from flows.cli.serve_settings import (
    DEFAULT_LABEL_CRON,
    DEFAULT_PRUNE_CRON,
    DEFAULT_SCORE_CRON,
    retraining_schedules,
)
from flows.cli.settings import load_config
from nnbuild.errors import ConfigError

if TYPE_CHECKING:
    from nnbuild.store import Store


@app.command(
    rich_help_panel=TRAIN,
    epilog='Example: nnbuild serve --cron "0 3 * * *" --timezone Europe/Berlin --config run.toml',
)
def serve(
    cron: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CRON",
            help="When to retrain, in five fields. May be repeated.",
            show_default="0 3 * * *",
        ),
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Retrain at this interval instead of by --cron."),
    ] = None,
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Timezone of the crons and of {date}.")
    ] = "UTC",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings of the runs from a file.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting of the runs. May be repeated."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="PLAN.toml", help="Several schedules from a file, each with its own settings."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="Stop a run that takes longer.",
            show_default="no limit",
        ),
    ] = None,
    collision: Annotated[
        Literal["enqueue", "cancel-new"],
        typer.Option(
            metavar="POLICY",
            help="What to do with a run that is due while another one runs: enqueue or cancel-new.",
        ),
    ] = "enqueue",
    catch_up: Annotated[
        bool,
        typer.Option(
            "--catch-up/--no-catch-up",
            help="Also run a late run if another run of the same settings has started since it was "
            "due.",
        ),
    ] = False,
    unchanged: Annotated[
        Literal["skip", "run"],
        typer.Option(
            metavar="POLICY",
            help="What to do if data, settings and code are those of an earlier run, or too few "
            "images are new: skip or run.",
        ),
    ] = "skip",
    score_input: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|GLOB|URL",
            help="Input to score on a schedule; {date} in it stands for each of the last days.",
        ),
    ] = None,
    score_cron: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CRON",
            help="When to score, in five fields. May be repeated.",
            show_default=DEFAULT_SCORE_CRON,
        ),
    ] = None,
    score_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--score-set", metavar="KEY=VALUE", help="Any setting of the scoring. May be repeated."
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="Run that scores alongside the champion; newest for the newest run, at each "
            "scoring, that was not promoted.",
        ),
    ] = None,
    score_days: Annotated[
        int, typer.Option(metavar="N", min=1, max=366, help="Number of days that {date} covers.")
    ] = 7,
    retrain_on_drift: Annotated[
        bool,
        typer.Option("--retrain-on-drift", help="Retrain when the scored images have drifted."),
    ] = False,
    label_input: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|GLOB|URL",
            help="Labels to add on a schedule; {date} in it stands for any day.",
        ),
    ] = None,
    label_cron: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CRON",
            help="When to add labels, in five fields. May be repeated.",
            show_default=DEFAULT_LABEL_CRON,
        ),
    ] = None,
    label_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--label-set",
            metavar="KEY=VALUE",
            help="Any setting of the labels or of the alarm. May be repeated.",
        ),
    ] = None,
    retrain_on_loss: Annotated[
        bool,
        typer.Option("--retrain-on-loss", help="Retrain when the accuracy on labels has dropped."),
    ] = False,
    prune: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Number of runs to keep: delete older ones on a schedule."
        ),
    ] = None,
    prune_cron: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CRON",
            help="When to delete, in five fields. May be repeated.",
            show_default=DEFAULT_PRUNE_CRON,
        ),
    ] = None,
    prune_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--prune-set",
            metavar="KEY=VALUE",
            help="Any other setting of the pruning: keep_days, scores. May be repeated.",
        ),
    ] = None,
    prune_prefect: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=36500,
            help="Also delete nnbuild's flow runs of more than N days ago from Prefect.",
        ),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Serve scheduled retraining, scoring, labelling and pruning, one run of each at a time."""
    from flows.cli import serve_plans as plans
    from nnbuild.store import Store

    opened = Store(store)
    root = str(opened.root)
    if timeout is not None and not math.isfinite(timeout):
        raise ConfigError(f"--timeout is {timeout}, expected a number of seconds")
    limits: dict[str, Any] = {"store": root, "timeout_seconds": timeout}
    given = load_config({}, config, settings or [])
    schedules = retraining_schedules(cron or [], interval, plan, timezone)
    retraining = plans.retraining_plan(
        given, schedules, timezone, limits | {"catch_up": catch_up, "unchanged": unchanged}, plan
    )
    scoring = plans.scoring_plan(
        score_input,
        [*(score_settings or []), *([] if shadow is None else [f"shadow={shadow}"])],
        score_cron or [],
        timezone,
        limits | {"days": score_days},
    )
    if retrain_on_drift and scoring is None:
        raise ConfigError("--retrain-on-drift needs scheduled scoring; give --score-input")
    if retrain_on_drift:
        plans.require_one_dataset(retraining, "--retrain-on-drift")
    if retrain_on_loss:
        plans.require_one_dataset(retraining, "--retrain-on-loss")
    labelling = plans.labelling_plan(
        label_input,
        label_settings or [],
        label_cron or [],
        timezone,
        limits,
        is_needed=retrain_on_loss,
    )
    pruning = plans.pruning_plan(
        prune,
        prune_settings or [],
        prune_cron or [],
        timezone,
        limits,
        flow_run_days=prune_prefect,
        score_input=score_input,
        score_days=score_days,
    )
    if interval is not None and not catch_up:
        _warn_if_too_frequent(interval)
    from flows.prefect_settings import prepare_environment

    prepare_environment()
    from flows.deployments import serve_until_stopped  # with Prefect, now that all is checked

    serve_until_stopped(
        deployment_name(opened),
        retraining,
        scoring,
        collision,
        drift_of=root if retrain_on_drift else None,
        labelling=labelling,
        loss_of=root if retrain_on_loss else None,
        pruning=pruning,
    )


def deployment_name(store: Store) -> str:
    """Return the name of a store's deployment, whose concurrency limit is that of the store."""
    import hashlib

    root = str(store.root)
    return f"{Path(root).name}-{hashlib.sha256(root.encode()).hexdigest()[:6]}"


def _warn_if_too_frequent(interval: float) -> None:
    from flows.schedules import SECONDS_TO_START

    if interval < SECONDS_TO_START:
        message = (
            f"nnbuild: due every {interval:g} s, but a run can take {SECONDS_TO_START:g} s to "
            "start; late runs are skipped"
        )
        print_line(message, sys.stderr)
