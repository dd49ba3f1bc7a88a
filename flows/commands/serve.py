"""`nnbuild serve`: a process that waits for the schedule, and runs each retraining in a process of its own."""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from flows.commands.run import configured
from flows.commands.serve_scores import Scoring
from flows.commands.serve_scores import parameters as score_parameters
from flows.commands.serve_scores import schedules as score_schedules
from flows.schedules import DEFAULT_CRON, SECONDS_TO_START, cron_schedule
from nnbuild import machine, settings
from nnbuild.config import RunConfig, resolve
from nnbuild.errors import ConfigError
from nnbuild.store import Store

COLLISIONS = ("enqueue", "cancel-new")
SECONDS_FOR_SERVER = 60.0
"""How long a server that is just starting is waited for."""


class _Plan(NamedTuple):
    """A deployment: when, and with what."""

    schedules: list[dict[str, Any]]
    parameters: dict[str, Any]


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
        given = settings.merged(base.model_dump(mode="json", exclude_none=True), each.pop("config", {}))
        each["parameters"] = common | {"config": _checked(settings.checked(given, plan)).model_dump(mode="json")}
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    retraining = _Plan(schedules, common | {"config": base.model_dump(mode="json")})
    scores = _scores(scoring, str(place.root), timezone, timeout)
    if retrain_on_drift and scores is None:
        raise ConfigError("--retrain-on-drift needs something that is scored; give --score-input")
    if interval is not None and interval < SECONDS_TO_START and overtaken == "skip":
        _warn_of_haste(interval)
    answered = str(place.root) if retrain_on_drift else None
    _serve(deployment_name(place), retraining, scores, collision, drift_of=answered)


def _scores(scoring: Scoring, root: str, timezone: str, timeout: float | None) -> _Plan | None:
    if scoring.input is None and not scoring.crons and not scoring.settings:
        return None
    given = score_parameters(scoring, root, timeout)
    return _Plan(score_schedules(scoring, timezone), given)


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
    return [cron_schedule(each, timezone, f"cron-{number}") for number, each in enumerate(wanted, 1)]


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
        schedule = cron_schedule(
            str(table["cron"]), str(table.get("timezone", "UTC")), str(table.get("name", f"plan-{number}"))
        )
        found.append(schedule | {"config": table.get("config", {})})
    return found


def _serve(name: str, retraining: _Plan, scoring: _Plan | None, collision: str, *, drift_of: str | None) -> None:
    from prefect import get_client
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import EntrypointType
    from prefect.flows import serve as serve_deployments
    from prefect.schedules import Schedule
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise ConfigError(
            "no Prefect server is configured; start one by `prefect server start`, and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    from flows import automations
    from flows.scheduled import scheduled_retrain
    from flows.scheduled_score import scheduled_score

    strategy = ConcurrencyLimitStrategy.ENQUEUE if collision == "enqueue" else ConcurrencyLimitStrategy.CANCEL_NEW

    def deployment(flow: Any, plan: _Plan, description: str) -> Any:
        return flow.to_deployment(
            name,
            schedules=[_schedule(Schedule, each) for each in plan.schedules],
            parameters=plan.parameters,
            version=machine.code_version(),
            description=description,
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )

    with get_client(sync_client=True) as client:
        _wait_for(client, str(PREFECT_API_URL.value()))
        served = [
            deployment(
                scheduled_retrain, retraining, "Retrains and decides on the champion; one run of the store at a time."
            )
        ]
        if scoring is not None:
            served.append(
                deployment(scheduled_score, scoring, "Scores what is new by the champion; one run at a time.")
            )
        automations.install_zombies(client)
        if drift_of is not None:
            automations.install(client, automations.retrain_on_drift(served[0].apply(), drift_of))
        left = _open_runs(client, name)
        automations.call_the_roll(left, {each.flow_id: client.read_flow(each.flow_id).name for each in left})
    named = ", ".join(f"{each.flow_name}/{name}" for each in served)
    print(f"serving {named}; stop it by Ctrl-C", flush=True)  # noqa: T201
    try:
        # Not paused meanwhile: what is due until the next start would be lost, and is late now.
        serve_deployments(
            *served, pause_on_shutdown=False, print_starting_message=False, heartbeat_seconds=automations.HEARTBEAT
        )
    finally:
        _close(name)


def _wait_for(client: Any, url: str) -> None:
    """Wait until the server answers: one that was started with this process takes a while.

    Raises:
        ConfigError: it does not answer in time.
    """
    end = time.monotonic() + SECONDS_FOR_SERVER
    while (trouble := client.api_healthcheck()) is not None:
        if time.monotonic() > end:
            raise ConfigError(f"the Prefect server at {url} does not answer: {trouble}; start it")
        time.sleep(1)


def _close(name: str) -> None:
    """Give the rows of runs that this process ended a final state; Prefect's runner leaves them as they were.

    A second SIGTERM does not keep it from that: it is about to end anyway.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from prefect import get_client
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        for each in _open_runs(client, name):
            message = "nnbuild serve was stopped; what the run has waits in the store for the next one."
            client.set_flow_run_state(each.id, Crashed(message=message), force=True)


def _open_runs(client: Any, name: str) -> list[Any]:
    """The flow runs of a deployment that have been taken up, and have no final state."""
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

    states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    found: list[Any] = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(states),
        deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [name]}}),
    )
    return found


def _schedule(kind: Any, given: dict[str, Any]) -> Any:
    from datetime import timedelta

    interval, others = given.get("interval"), {name: each for name, each in given.items() if name != "interval"}
    return kind(interval=timedelta(seconds=interval), **others) if interval is not None else kind(**others)
