"""The deployments on a Prefect server: made, watched over, served, and left in order."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import EntrypointType
from prefect.runner import Runner
from prefect.schedules import Schedule
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed

from flows import automations
from flows.cli.console import print_line
from flows.embedded_server import require_api_url_without_credentials, trouble_with_server
from flows.hooks import record_cancellation
from flows.outage import SECONDS_TO_ANSWER
from flows.scheduled import scheduled_retrain, scheduled_score
from flows.schedules import Plan
from nnbuild.errors import ConfigError
from nnbuild.runtime import environment
from nnbuild.runtime.signals import children_spared_ctrl_c, deferred_signals

SECONDS_FOR_SERVER = 60.0
"""How long a server that is just starting is waited for."""


def serve_until_stopped(
    name: str, retraining: Plan, scoring: Plan | None, collision: str, *, drift_of: str | None
) -> None:
    """Serve until a signal ends it.

    Args:
        name: of the deployments.
        retraining: when and with what.
        scoring: likewise; None scores nothing.
        collision: `enqueue` or `cancel-new`, for a run that is due while another one is running.
        drift_of: the root of a store, drift of whose scores is answered by retraining; None answers none.

    Raises:
        ConfigError: no server is configured, or it does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "no Prefect server is configured; start one by `prefect server start`, and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    require_api_url_without_credentials()
    _require_answer(str(url))
    with get_client(sync_client=True) as client:
        retrained = "Retrains and decides on the champion; one run of the store at a time."
        served = [_deployment(scheduled_retrain, name, retraining, collision, retrained)]
        if scoring is not None:
            scored = "Scores what is new by the champion; one run at a time."
            served.append(_deployment(scheduled_score, name, scoring, collision, scored))
        for each in served:
            replace_schedules(client, each)
        automations.install_zombies(client)
        if drift_of is not None:
            automations.install(client, automations.retrain_on_drift(served[0].apply(), drift_of))
        left = _open_runs(client, name)
        automations.call_the_roll(
            left, {each.flow_id: client.read_flow(each.flow_id).name for each in left}
        )
    named = ", ".join(f"{each.flow_name}/{name}" for each in served)
    try:
        # Until the event loop listens itself: an exception in the middle of making it is a traceback.
        with deferred_signals() as arrived:
            print_line(f"serving {named}; stop it by Ctrl-C")
            asked = asyncio.run(_serve(served, arrived))
    finally:
        _close(name)
    if asked == signal.SIGINT:
        raise KeyboardInterrupt


async def _serve(deployments: Sequence[Any], arrived: Callable[[], int | None]) -> int | None:
    """Start what is due, until Ctrl-C or SIGTERM cancels this task.

    Args:
        deployments: Deployments to serve.
        arrived: Returns the number of a signal that came before this task could listen, or None.

    Returns:
        The number of that signal.
    """
    # Not paused meanwhile: what is due until the next start would be lost, and is late now.
    runner = Runner(pause_on_shutdown=False, limit=None, heartbeat_seconds=automations.HEARTBEAT)
    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    asked: list[int] = []

    def end(number: int, _frame: object = None) -> None:
        if not asked:  # a second one would cancel what the first one began
            asked.append(number)
            loop.call_soon_threadsafe(serving.cancel)

    # Prefect's own raises SystemExit wherever it is. While a run is being started that is mostly inside of pydantic,
    # which makes an error of its own of it: the run crashed, and the runner went on.
    runner.handle_sigterm = end
    loop.add_signal_handler(signal.SIGINT, end, signal.SIGINT)
    signal.signal(signal.SIGTERM, end)
    if (earlier := arrived()) is not None:
        return earlier
    with children_spared_ctrl_c(), suppress(asyncio.CancelledError):
        for each in deployments:
            await runner.add_deployment(each)
        await runner.start()
    return asked[0] if asked else None


def replace_schedules(client: Any, deployment: Any) -> None:
    """Make the next registration of a deployment remove the schedules that it no longer has.

    Where all schedules have slugs, Prefect changes those of the same slug and keeps the others,
    which would go on with the settings of before. It replaces all of them where one has no slug; so
    one is added that never runs. Deleting them would be simpler, and would delete the late runs of
    every schedule too.
    """
    try:
        known = client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}")
    except ObjectNotFound:
        return
    if {each.slug for each in known.schedules} - {each.slug for each in deployment.schedules}:
        idle = CronSchedule(cron="0 0 1 1 *", timezone="UTC")
        client.create_deployment_schedules(known.id, [(idle, False)])


def _deployment(flow: Any, name: str, plan: Plan, collision: str, description: str) -> Any:
    strategy = (
        ConcurrencyLimitStrategy.ENQUEUE
        if collision == "enqueue"
        else ConcurrencyLimitStrategy.CANCEL_NEW
    )
    return flow.to_deployment(
        name,
        schedules=[_schedule(each) for each in plan.schedules],
        parameters=plan.parameters,
        version=environment.code_version(),
        description=description,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _schedule(given: dict[str, Any]) -> Schedule:
    interval, others = (
        given.get("interval"),
        {name: each for name, each in given.items() if name != "interval"},
    )
    return (
        Schedule(interval=timedelta(seconds=interval), **others)
        if interval is not None
        else Schedule(**others)
    )


def _require_answer(url: str) -> None:
    """Wait until the server answers: one that was started together with this process takes a while.

    Raises:
        ConfigError: It does not answer in time, or refuses us.
    """
    trouble = trouble_with_server(SECONDS_FOR_SERVER, starting=True)
    if trouble is not None:
        raise ConfigError(
            f"the Prefect server at {url} cannot be used ({trouble}); "
            "start it, or correct PREFECT_API_URL"
        )


def _close(name: str) -> None:
    """Give the rows of runs that this process ended a final state; Prefect's runner leaves them as they were.

    A second SIGTERM does not keep it from that: it is about to end anyway.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if trouble_with_server(SECONDS_TO_ANSWER) is not None:
        return  # the automation that ends silent runs sees to the rows when the server is back
    with get_client(sync_client=True) as client:
        for each in _open_runs(client, name):
            client.set_flow_run_state(each.id, _last_state(each), force=True)


def _last_state(run: Any) -> Any:
    """Return the state of a run that ends with `serve`: cancelled, if a person asked for that."""
    if run.state.is_cancelling():
        record_cancellation(None, run, run.state)
        return Cancelled(message="The run was cancelled, and nnbuild serve was stopped.")
    return Crashed(
        message="nnbuild serve was stopped; what the run has waits in the store for the next one."
    )


def _open_runs(client: Any, name: str) -> list[Any]:
    """The flow runs of a deployment that have been taken up, and have no final state."""
    states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    found: list[Any] = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(states),
        deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [name]}}),
    )
    return found
