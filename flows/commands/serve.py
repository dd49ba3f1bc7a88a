"""`nnbuild serve`: a process that waits for the schedule, and runs each retraining in a process of its own."""

import hashlib
import os
import zoneinfo
from pathlib import Path
from typing import Any

from flows.commands.run import configured
from nnbuild import machine, settings
from nnbuild.config import RunConfig, resolve
from nnbuild.errors import ConfigError
from nnbuild.store import Store

DEFAULT_CRON = "0 3 * * *"
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
        given = settings.merged(base.model_dump(mode="json", exclude_none=True), each.pop("config", {}))
        each["parameters"] = common | {"config": _checked(settings.checked(given, plan)).model_dump(mode="json")}
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    _serve(deployment_name(place), schedules, common | {"config": base.model_dump(mode="json")}, collision)


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
    return [_cron(each, timezone, f"cron-{number}") for number, each in enumerate(wanted, 1)]


def _planned(plan: Path) -> list[dict[str, Any]]:
    tables = settings.read_toml(plan).get("schedule")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{plan}: no [[schedule]], expected one for each schedule, with cron and config")
    found = []
    for number, table in enumerate(tables, 1):
        unknown = table.keys() - {"name", "cron", "timezone", "config"}
        if unknown or "cron" not in table:
            raise ConfigError(
                f"{plan}: schedule {number} has {sorted(table)}, expected cron and perhaps name, timezone, config"
            )
        schedule = _cron(
            str(table["cron"]), str(table.get("timezone", "UTC")), str(table.get("name", f"plan-{number}"))
        )
        found.append(schedule | {"config": table.get("config", {})})
    return found


def _cron(cron: str, timezone: str, slug: str) -> dict[str, Any]:
    if timezone not in zoneinfo.available_timezones():
        raise ConfigError(f"timezone {timezone!r} is not known, expected a name like Europe/Berlin")
    from prefect.schedules import Cron

    try:
        Cron(cron)
    except ValueError as error:
        raise ConfigError(f"cron {cron!r} is no schedule, expected five fields like {DEFAULT_CRON!r}") from error
    return {"cron": cron, "timezone": timezone, "slug": slug}


def _serve(name: str, schedules: list[dict[str, Any]], parameters: dict[str, Any], collision: str) -> None:
    from prefect import get_client
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import EntrypointType
    from prefect.schedules import Schedule
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise ConfigError(
            "no Prefect server is configured; start one by `prefect server start`, and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    from flows import automations
    from flows.scheduled import scheduled_retrain

    with get_client(sync_client=True) as client:
        if (trouble := client.api_healthcheck()) is not None:
            raise ConfigError(f"the Prefect server at {PREFECT_API_URL.value()} does not answer: {trouble}; start it")
        automations.install(client, scheduled_retrain.name)
    strategy = ConcurrencyLimitStrategy.ENQUEUE if collision == "enqueue" else ConcurrencyLimitStrategy.CANCEL_NEW
    deployment = scheduled_retrain.to_deployment(
        name,
        schedules=[_schedule(Schedule, each) for each in schedules],
        parameters=parameters,
        version=machine.code_version(),
        description="Retrains and decides on the champion; one run of the store at a time.",
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    from prefect.flows import serve as serve_deployments

    print(f"serving {scheduled_retrain.name}/{name}; stop it by Ctrl-C", flush=True)  # noqa: T201
    try:
        serve_deployments(deployment, print_starting_message=False, heartbeat_seconds=automations.HEARTBEAT)
    finally:
        _close(name)


def _close(name: str) -> None:
    """Give the rows of runs that this process ended a final state; Prefect's runner leaves them as they were."""
    from prefect import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.states import Crashed

    open_states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    with get_client(sync_client=True) as client:
        for each in client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(open_states),
            deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [name]}}),
        ):
            message = "nnbuild serve was stopped; what the run has waits in the store for the next one."
            client.set_flow_run_state(each.id, Crashed(message=message), force=True)


def _schedule(kind: Any, given: dict[str, Any]) -> Any:
    from datetime import timedelta

    interval = given.pop("interval", None)
    return kind(interval=timedelta(seconds=interval), **given) if interval is not None else kind(**given)
