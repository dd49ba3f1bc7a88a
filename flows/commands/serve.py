"""`nnbuild serve`: a process that waits for the schedule, and runs each retraining in a process of its own."""

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

from flows.commands.run import configured
from flows.commands.serve_scores import Scoring
from flows.commands.serve_scores import parameters as score_parameters
from flows.commands.serve_scores import schedules as score_schedules
from flows.embedded_server import prepare_environment
from flows.schedules import DEFAULT_CRON, SECONDS_TO_START, Plan, cron_schedule, interval_schedule
from nnbuild.config import loading
from nnbuild.config.presets import DATASETS
from nnbuild.config.schema import RunConfig, ScheduledConfig, resolve
from nnbuild.errors import ConfigError, suggestion
from nnbuild.store import Store

COLLISIONS = ("enqueue", "cancel-new")
_PLAN_KEYS = {"name", "cron", "timezone", "config"}


def serve(
    *,
    crons: list[str],
    interval: float | None,
    timezone: str,
    path: Path | None,
    overrides: list[str],
    plan: Path | None,
    store: str | None,
    timeout: float | None,
    collision: str,
    overtaken: str,
    scoring: Scoring,
    retrain_on_drift: bool,
) -> None:
    """Serve the schedule until a signal ends it.

    Raises:
        ConfigError: a schedule or a setting that cannot be used, or no server.
    """
    place = Store(store)
    _one_of("--collision", collision, COLLISIONS)
    _one_of("--overtaken", overtaken, ("skip", "run"))
    base = _checked(configured({}, path, overrides))
    if timeout is not None and not math.isfinite(timeout):
        raise ConfigError(f"--timeout {timeout}, expected a number of seconds")
    common = {"store": str(place.root), "timeout_seconds": timeout, "overtaken": overtaken}
    schedules = _planned(plan) if plan else _simple(crons, interval, timezone)
    for each in schedules:
        given = loading.merge(
            base.model_dump(mode="json", exclude_none=True), each.pop("config", {})
        )
        config = _checked(loading.parse_config(given, plan))
        each["parameters"] = common | {"config": config.model_dump(mode="json")}
    retraining = Plan(schedules, common | {"config": base.model_dump(mode="json")})
    scores = _scores(scoring, str(place.root), timezone, timeout)
    if retrain_on_drift and scores is None:
        raise ConfigError("--retrain-on-drift needs something that is scored; give --score-input")
    if interval is not None and interval < SECONDS_TO_START and overtaken == "skip":
        _warn_of_haste(interval)
    answered = str(place.root) if retrain_on_drift else None
    prepare_environment()
    from flows.deployments import (
        serve_until_stopped,
    )  # with Prefect, now that nothing is left to refuse

    serve_until_stopped(deployment_name(place), retraining, scores, collision, drift_of=answered)


def _scores(scoring: Scoring, root: str, timezone: str, timeout: float | None) -> Plan | None:
    if scoring.input is None and not scoring.crons and not scoring.settings:
        return None
    given = score_parameters(scoring, root, timezone, timeout)
    return Plan(score_schedules(scoring, timezone), given)


def _warn_of_haste(interval: float) -> None:
    told = f"due every {interval:g} s, and a run can take {SECONDS_TO_START:g} s to start; late ones are skipped"
    print(f"nnbuild: {told}", file=sys.stderr, flush=True)  # noqa: T201


def deployment_name(store: Store) -> str:
    """One deployment for each store, whoever serves it: its concurrency limit is the store's."""
    root = str(store.root)
    return f"{Path(root).name}-{hashlib.sha256(root.encode()).hexdigest()[:6]}"


def _one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ConfigError(f"{option} {given!r}, expected {' or '.join(known)}")


def _checked(config: RunConfig) -> ScheduledConfig:
    """Return the config of a scheduled run, with paths that hold in any working folder.

    Raises:
        ConfigError: A setting cannot be used, or not in a scheduled run.
    """
    scheduled = ScheduledConfig.model_validate(config.model_dump())
    resolve(scheduled.run_config())
    dataset = scheduled.dataset
    places: dict[str, Path | str] = {}
    if dataset.data_dir is not None:
        places["data_dir"] = dataset.data_dir.absolute()
    if dataset.name not in DATASETS:
        if not {"/", "."} & set(dataset.name) and not Path(dataset.name).exists():
            raise ConfigError(
                f"dataset {dataset.name!r} is neither a known name nor an existing path; "
                f"{suggestion(dataset.name, DATASETS)}"
            )
        places["name"] = str(Path(dataset.name).absolute())
    return scheduled.model_copy(update={"dataset": dataset.model_copy(update=places)})


def _simple(crons: list[str], interval: float | None, timezone: str) -> list[dict[str, Any]]:
    if crons and interval is not None:
        raise ConfigError("--cron and --interval both say when; give one of them")
    if interval is not None:
        return [interval_schedule(interval)]
    wanted = crons or [DEFAULT_CRON]
    return [
        cron_schedule(each, timezone, f"cron-{number}") for number, each in enumerate(wanted, 1)
    ]


def _planned(plan: Path) -> list[dict[str, Any]]:
    """Read the schedules of a plan, each with the `config` of its runs.

    Raises:
        ConfigError: A schedule cannot be used; the message names it.
    """
    tables = loading.read_toml(plan).get("schedule")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(
            f"{plan}: no [[schedule]], expected one for each schedule, with cron and config"
        )
    found = [
        _planned_schedule(f"{plan}: schedule {n}", n, each) for n, each in enumerate(tables, 1)
    ]
    names = [each["slug"] for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{plan}: two schedules are called {twice[0]!r}; rename one of them")
    return found


def _planned_schedule(place: str, number: int, table: Any) -> dict[str, Any]:
    keys = sorted(table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or "cron" not in table or table.keys() - _PLAN_KEYS:
        raise ConfigError(f"{place} has {keys}, expected cron and perhaps name, timezone, config")
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
