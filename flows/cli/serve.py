"""`nnbuild serve`: wait for schedules, and run each retraining in a process of its own."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.app import TRAIN, StoreOption, app
from flows.cli.console import print_line
from flows.cli.score import score_config
from flows.cli.settings import load_config, parse_options
from nnbuild.config.presets import DATASETS
from nnbuild.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from nnbuild.config.schema import RunConfig, ScheduledConfig
    from nnbuild.store import Store

Schedule = dict[str, Any]
_DEFAULT_SCORE_CRON = "0 5 * * *"
_DEFAULT_LABEL_CRON = "0 6 * * *"
_DEFAULT_PRUNE_CRON = "0 7 * * *"
_PLAN_KEYS = {"name", "cron", "timezone", "config"}


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
            show_default=_DEFAULT_SCORE_CRON,
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
            show_default=_DEFAULT_LABEL_CRON,
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
            show_default=_DEFAULT_PRUNE_CRON,
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
    from flows.schedules import Plan
    from nnbuild.config.loading import merge
    from nnbuild.store import Store

    opened = Store(store)
    root = str(opened.root)
    given = load_config({}, config, settings or [])
    has_no_timezone = "timezone" not in given.dataset.model_fields_set
    base = _scheduled_config(given)
    if timeout is not None and not math.isfinite(timeout):
        raise ConfigError(f"--timeout is {timeout}, expected a number of seconds")
    common = {
        "store": root,
        "timeout_seconds": timeout,
        "catch_up": catch_up,
        "unchanged": unchanged,
    }
    schedules = _read_plan(plan) if plan else _schedules(cron or [], interval, timezone)
    for each in schedules:
        own = each.pop("config", {})
        if has_no_timezone:  # the day of a run is that of its schedule
            own = merge({"dataset": {"timezone": each.get("timezone", timezone)}}, own)
        each["parameters"] = common | {"config": _merge(base, own, plan)}
    retraining = Plan(schedules, common | {"config": base.model_dump(mode="json")})
    scoring = None
    if score_input is not None or score_cron or score_settings or shadow is not None:
        if shadow is not None:
            score_settings = [*(score_settings or []), f"shadow={shadow}"]
        parameters = {
            "config": _score_settings(score_input, score_settings or []),
            "store": root,
            "days": score_days,
            "timezone": timezone,
            "timeout_seconds": timeout,
        }
        scoring = Plan(_crons(score_cron or [_DEFAULT_SCORE_CRON], timezone, "score"), parameters)
    if retrain_on_drift and scoring is None:
        raise ConfigError("--retrain-on-drift needs scheduled scoring; give --score-input")
    limits: dict[str, Any] = {"store": root, "timeout_seconds": timeout}
    labelling = None
    if label_input is not None or label_cron or label_settings or retrain_on_loss:
        parameters = _label_settings(label_input, label_settings or []) | limits
        labelling = Plan(_crons(label_cron or [_DEFAULT_LABEL_CRON], timezone, "label"), parameters)
    pruning = None
    if prune is not None or prune_cron or prune_settings or prune_prefect is not None:
        retention = _prune_settings(prune, prune_settings or [], score_input, score_days)
        parameters = {"config": retention, "flow_run_days": prune_prefect} | limits
        pruning = Plan(_crons(prune_cron or [_DEFAULT_PRUNE_CRON], timezone, "prune"), parameters)
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


def _scheduled_config(config: RunConfig) -> ScheduledConfig:
    """Return the config of a scheduled run, with paths that are valid in any working folder.

    Raises:
        ConfigError: A setting is invalid, or not allowed in a scheduled run.
    """
    from nnbuild.config.schema import ScheduledConfig, resolve
    from nnbuild.store.filesystem import absolute_address, is_url

    scheduled = ScheduledConfig.model_validate(config.model_dump())
    resolve(scheduled.run_config())
    dataset = scheduled.dataset
    paths: dict[str, Path | str] = {}
    if dataset.data_dir is not None:
        paths["data_dir"] = dataset.data_dir.absolute()
    if dataset.metadata is not None:
        paths["metadata"] = dataset.metadata.absolute()
    if dataset.name not in DATASETS and not is_url(dataset.name):
        if not {"/", "."} & set(dataset.name) and not Path(dataset.name).exists():
            raise ConfigError(
                f"dataset {dataset.name!r} is neither a known name nor an existing path; "
                f"{suggestion(dataset.name, DATASETS)}"
            )
        paths["name"] = absolute_address(dataset.name)
    changed: dict[str, Any] = {"dataset": dataset.model_copy(update=paths)}
    if (golden := scheduled.gate.golden) is not None and golden not in DATASETS:
        changed["gate"] = scheduled.gate.model_copy(update={"golden": absolute_address(golden)})
    return scheduled.model_copy(update=changed)


def _merge(base: ScheduledConfig, settings: dict[str, Any], plan: Path | None) -> dict[str, Any]:
    """Return the config of one schedule: the common settings, overridden by its own."""
    from nnbuild.config import loading

    merged = loading.merge(base.model_dump(mode="json", exclude_none=True), settings)
    return _scheduled_config(loading.parse_config(merged, plan)).model_dump(mode="json")


def _schedules(crons: list[str], interval: float | None, timezone: str) -> list[Schedule]:
    from flows.schedules import DEFAULT_CRON, interval_schedule

    if crons and interval is not None:
        raise ConfigError("--cron and --interval exclude each other; give one of them")
    if interval is not None:
        return [interval_schedule(interval)]
    return _crons(crons or [DEFAULT_CRON], timezone, "cron")


def _crons(crons: list[str], timezone: str, slug: str) -> list[Schedule]:
    from flows.schedules import cron_schedule

    return [
        cron_schedule(each, timezone, f"{slug}-{number}") for number, each in enumerate(crons, 1)
    ]


def _read_plan(plan: Path) -> list[Schedule]:
    """Return the schedules of a plan, each with the `config` of its runs.

    Raises:
        ConfigError: A schedule is invalid; the message names it.
    """
    from nnbuild.config import loading

    tables = loading.read_toml(plan).get("schedule")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(
            f"{plan} has no [[schedule]]; write one for each schedule, with cron and config"
        )
    schedules = [
        _planned_schedule(f"{plan}: schedule {number}", number, each)
        for number, each in enumerate(tables, 1)
    ]
    names = [each["slug"] for each in schedules]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{plan}: two schedules are called {duplicates[0]!r}; rename one of them")
    return schedules


def _planned_schedule(place: str, number: int, table: Any) -> Schedule:
    from flows.schedules import cron_schedule

    keys = sorted(table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or "cron" not in table or table.keys() - _PLAN_KEYS:
        raise ConfigError(
            f"{place} has {keys}, expected cron and optionally name, timezone, config"
        )
    texts = {"name": f"plan-{number}", "timezone": "UTC"} | table
    for key in ("cron", "name", "timezone"):
        if not isinstance(texts[key], str) or not texts[key]:
            raise ConfigError(f"{place}: {key} is {texts[key]!r}, expected a text")
    config = table.get("config", {})
    if not isinstance(config, dict):
        raise ConfigError(f"{place}: config is {config!r}, expected a table of settings")
    try:
        schedule = cron_schedule(texts["cron"], texts["timezone"], texts["name"])
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    return schedule | {"config": config}


def _score_settings(source: str | None, settings: list[str]) -> dict[str, Any]:
    """Return the config of scheduled scoring, with a path that is valid in any working folder.

    Raises:
        ConfigError: The input is missing, or a setting is invalid.
    """
    from nnbuild.config import loading
    from nnbuild.store.filesystem import absolute_address

    if source is None:
        raise ConfigError(
            "--score-cron, --score-set and --shadow have no effect without --score-input; give "
            "that too"
        )
    options = {"input": absolute_address(source)}
    for text in settings:
        options |= loading.parse_setting(text)
    return score_config(options).model_dump(mode="json")


def _label_settings(source: str | None, settings: list[str]) -> dict[str, Any]:
    """Return the configs of scheduled labelling, with a path that is valid in any working folder.

    Raises:
        ConfigError: The input is missing, or a setting is invalid.
    """
    from nnbuild.config import loading
    from nnbuild.live import LabelConfig, LiveConfig
    from nnbuild.store.filesystem import absolute_address

    if source is None:
        raise ConfigError(
            "--label-cron, --label-set and --retrain-on-loss have no effect without "
            "--label-input; give that too"
        )
    options: dict[str, Any] = {}
    for text in settings:
        options |= loading.parse_setting(text)
    alarm = {name: options.pop(name) for name in LiveConfig.model_fields if name in options}
    options["input"] = absolute_address(source)
    return {
        "config": parse_options(LabelConfig, options).model_dump(mode="json"),
        "live": parse_options(LiveConfig, alarm).model_dump(mode="json"),
    }


def _prune_settings(
    keep: int | None, settings: list[str], score_input: str | None, score_days: int
) -> dict[str, Any]:
    """Return the config of scheduled pruning.

    Raises:
        ConfigError: The number of runs is missing, a setting is invalid, or scheduled scoring would
            score again what is deleted.
    """
    from nnbuild.config import loading
    from nnbuild.pipeline.retention import retention_config

    if keep is None:
        raise ConfigError(
            "--prune-cron, --prune-set and --prune-prefect have no effect without --prune; "
            "give the number of runs to keep"
        )
    options: dict[str, Any] = {}
    for text in settings:
        options |= loading.parse_setting(text)
    retention = retention_config({"keep": keep} | options).model_dump(mode="json")
    if score_input is not None:
        _require_more_jobs_than_days(retention, score_input, score_days)
    return retention


def _require_more_jobs_than_days(retention: dict[str, Any], source: str, days: int) -> None:
    """Refuse a pruning that deletes jobs whose days the next scoring would score again.

    Raises:
        ConfigError: Fewer jobs are kept than there are days to score.
    """
    from nnbuild.runtime.date_patterns import is_dated

    most = max(retention["keep"], retention["keep_days"] or 0)
    if retention["scores"] and is_dated(source) and most < days:
        raise ConfigError(
            f"--prune {retention['keep']} keeps fewer scoring jobs than the {days} days of "
            "--score-days, which would be scored again and again; keep more, or set keep_days"
        )


def _warn_if_too_frequent(interval: float) -> None:
    from flows.schedules import SECONDS_TO_START

    if interval < SECONDS_TO_START:
        message = (
            f"nnbuild: due every {interval:g} s, but a run can take {SECONDS_TO_START:g} s to "
            "start; late runs are skipped"
        )
        print_line(message, sys.stderr)
