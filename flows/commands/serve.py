"""`nnbuild serve`: a process that waits for the schedule, and runs each retraining in a process of its own."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from flows.commands.run import configured
from flows.commands.serve_scores import Scoring
from flows.commands.serve_scores import parameters as score_parameters
from flows.commands.serve_scores import schedules as score_schedules
from flows.embedded_server import prepare_environment
from flows.schedules import DEFAULT_CRON, SECONDS_TO_START, Plan, cron_schedule
from nnbuild import settings
from nnbuild.config import RunConfig, resolve
from nnbuild.errors import ConfigError
from nnbuild.store import Store

COLLISIONS = ("enqueue", "cancel-new")


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
    data = {"dataset": {"data_dir": os.environ.get("NNBUILD_DATA_DIR")}}
    base = _checked(configured(data, path, overrides))
    common = {"store": str(place.root), "timeout_seconds": timeout, "overtaken": overtaken}
    schedules = _planned(plan) if plan else _simple(crons, interval, timezone)
    for each in schedules:
        given = settings.merged(
            base.model_dump(mode="json", exclude_none=True), each.pop("config", {})
        )
        each["parameters"] = common | {
            "config": _checked(settings.checked(given, plan)).model_dump(mode="json")
        }
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
    given = score_parameters(scoring, root, timeout)
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


def _checked(config: RunConfig) -> RunConfig:
    if config.dataset.fallback is not None:
        raise ConfigError(
            f"dataset.fallback is {config.dataset.fallback!r}, and a scheduled run never falls back; leave it away"
        )
    resolve(config)
    return config


def _simple(crons: list[str], interval: float | None, timezone: str) -> list[dict[str, Any]]:
    if crons and interval is not None:
        raise ConfigError("--cron and --interval both say when; give one of them")
    if interval is not None:
        if not interval > 0:
            raise ConfigError(f"--interval {interval:g}, expected seconds above 0")
        return [{"interval": interval}]
    wanted = crons or [DEFAULT_CRON]
    return [
        cron_schedule(each, timezone, f"cron-{number}") for number, each in enumerate(wanted, 1)
    ]


def _planned(plan: Path) -> list[dict[str, Any]]:
    tables = settings.read_toml(plan).get("schedule")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(
            f"{plan}: no [[schedule]], expected one for each schedule, with cron and config"
        )
    found = []
    for number, table in enumerate(tables, 1):
        unknown = table.keys() - {"name", "cron", "timezone", "config"}
        if unknown or "cron" not in table:
            raise ConfigError(
                f"{plan}: schedule {number} has {sorted(table)}, expected cron and perhaps name, timezone, config"
            )
        schedule = cron_schedule(
            str(table["cron"]),
            str(table.get("timezone", "UTC")),
            str(table.get("name", f"plan-{number}")),
        )
        found.append(schedule | {"config": table.get("config", {})})
    return found
