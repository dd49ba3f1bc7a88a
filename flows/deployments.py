"""Register deployments on a Prefect server, serve them, and close their runs at the end."""

import asyncio
import signal
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any
from uuid import UUID

from prefect import State, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Schedule
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed
from prefect.types.entrypoint import EntrypointType

from flows import automations
from flows.cli.console import print_line
from flows.hooks import record_cancellation
from flows.prefect_settings import require_api_url_without_credentials
from flows.scheduled import (
    scheduled_label,
    scheduled_prune,
    scheduled_retrain,
    scheduled_score,
)
from flows.schedules import Plan
from flows.server_answer import SECONDS_TO_ANSWER_AT_STOP, server_problem
from nnbuild.errors import ConfigError
from nnbuild.runtime import environment
from nnbuild.runtime.signals import children_spared_ctrl_c, deferred_signals

SECONDS_FOR_SERVER = 60.0
"""Time to wait for a server that is just starting."""


def serve_until_stopped(
    name: str,
    retraining: Plan,
    scoring: Plan | None,
    collision: str,
    *,
    drift_of: str | None,
    labelling: Plan | None = None,
    loss_of: str | None = None,
    pruning: Plan | None = None,
) -> None:
    """Serve the deployments until a signal arrives.

    Args:
        name: Name of the deployments.
        retraining: Schedules and parameters of the retraining.
        scoring: Schedules and parameters of the scoring; None to serve no scoring.
        collision: `enqueue` or `cancel-new`, for a run that is due while another one is running.
        drift_of: Root of the store in which drift triggers a retraining; None for no store.
        labelling: Schedules and parameters of the labelling; None to serve no labelling.
        loss_of: Root of the store in which a loss of accuracy triggers a retraining.
        pruning: Schedules and parameters of the pruning; None to serve no pruning.

    Raises:
        ConfigError: No server is configured, or it does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "no Prefect server is configured; start one by `prefect server start`, and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    require_api_url_without_credentials()
    _require_answer(str(url))
    description = "Retrains and decides on the champion; one run of the store at a time."
    deployments = [_deployment(scheduled_retrain, name, retraining, collision, description)]
    if scoring is not None:
        description = "Scores new inputs with the champion; one run at a time."
        deployments.append(_deployment(scheduled_score, name, scoring, collision, description))
    if labelling is not None:
        description = "Adds labels and computes live accuracy; one run at a time."
        deployments.append(_deployment(scheduled_label, name, labelling, collision, description))
    if pruning is not None:
        description = "Deletes old runs, and the data that no kept run needs."
        deployments.append(_deployment(scheduled_prune, name, pruning, collision, description))
    with get_client(sync_client=True) as client:
        _prepare_server(client, name, deployments, drift_of, loss_of)
    served = ", ".join(f"{each.flow_name}/{name}" for each in deployments)
    runner = _Runner()
    try:
        # Until the event loop handles signals itself: an exception while it is being created would
        # be a traceback.
        with deferred_signals() as pending_signal:
            print_line(f"serving {served}; stop it by Ctrl-C")
            received = asyncio.run(_serve(runner, deployments, pending_signal))
    finally:
        _close_runs(name, runner.stopped_runs)
    if received == signal.SIGINT:
        raise KeyboardInterrupt


def _prepare_server(
    client: Any,
    name: str,
    deployments: Sequence[Any],
    drift_of: str | None,
    loss_of: str | None,
) -> None:
    """Remove old schedules, install the automations, and detect runs that have crashed."""
    for each in deployments:
        replace_schedules(client, each)
    automations.install_crash_detection(client)
    if drift_of is not None:
        automation = automations.retrain_on_drift(deployments[0].apply(), drift_of)
        automations.install(client, automation)
    if loss_of is not None:
        automation = automations.retrain_on_loss(deployments[0].apply(), loss_of)
        automations.install(client, automation)
    runs = _open_runs(client, name)
    flow_names = {each.flow_id: client.read_flow(each.flow_id).name for each in runs}
    automations.request_heartbeats(runs, flow_names)


class _Runner(Runner):
    """Runner of Prefect that records which flow runs it stops.

    Attributes:
        stopped_runs: IDs of the flow runs that it had taken from the queue, and that had not ended,
            when it was stopped.
    """

    def __init__(self) -> None:
        # Schedules are not paused at the end: runs that are due until the next start would be lost
        # instead of late.
        super().__init__(
            pause_on_shutdown=False, limit=None, heartbeat_seconds=automations.HEARTBEAT_SECONDS
        )
        self.stopped_runs: set[UUID] = set()

    async def __aexit__(self, *error: object) -> None:
        # The poller has the ID of a run from before it is pending until its process has ended; no
        # public attribute has those of runs whose process is not there yet. By now the poller takes
        # no more runs, and Prefect is about to stop those that it has.
        self.stopped_runs = set(self._scheduled_run_poller._submitting_flow_run_ids)  # noqa: SLF001
        await super().__aexit__(*error)


async def _serve(
    runner: _Runner,
    deployments: Sequence[RunnerDeployment],
    pending_signal: Callable[[], int | None],
) -> int | None:
    """Start due runs until Ctrl-C or SIGTERM cancels this task.

    Args:
        runner: Runner that starts them.
        deployments: Deployments to serve.
        pending_signal: Function that returns a signal that arrived before this task could handle
            signals, or None.

    Returns:
        The number of the signal.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None = None) -> None:
        if not received and task is not None:  # a second signal would cancel the clean-up
            received.append(number)
            loop.call_soon_threadsafe(task.cancel)

    # Prefect's own handler raises SystemExit wherever the process is. While a run is being started
    # that is mostly inside pydantic, which turns it into an error of its own: the run crashed, and
    # the runner continued.
    runner.handle_sigterm = stop  # type: ignore[method-assign]
    loop.add_signal_handler(signal.SIGINT, stop, signal.SIGINT)
    signal.signal(signal.SIGTERM, stop)
    if (earlier := pending_signal()) is not None:
        return earlier
    with children_spared_ctrl_c(), suppress(asyncio.CancelledError):
        for each in deployments:
            await runner.aadd_deployment(each)
        await runner.start()
    return received[0] if received else None


def replace_schedules(client: Any, deployment: Any) -> None:
    """Make the next registration of a deployment remove the schedules that it no longer has.

    If all schedules have slugs, Prefect updates those with the same slug and keeps the others,
    which would continue with outdated settings. If one has no slug, Prefect replaces all of them.
    So this adds an inactive schedule without a slug. Deleting schedules would be simpler, but it
    would also delete the late runs of all of them.
    """
    try:
        known = client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}")
    except ObjectNotFound:
        return
    if {each.slug for each in known.schedules} - {each.slug for each in deployment.schedules}:
        inactive = CronSchedule(cron="0 0 1 1 *", timezone="UTC")
        client.create_deployment_schedules(known.id, [(inactive, False)])


def _deployment(
    flow: Any, name: str, plan: Plan, collision: str, description: str
) -> RunnerDeployment:
    strategy = (
        ConcurrencyLimitStrategy.ENQUEUE
        if collision == "enqueue"
        else ConcurrencyLimitStrategy.CANCEL_NEW
    )
    deployment: RunnerDeployment = flow.to_deployment(
        name,
        schedules=[_schedule(each) for each in plan.schedules],
        parameters=plan.parameters,
        version=environment.code_version(),
        description=description,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return deployment


def _schedule(keywords: dict[str, Any]) -> Schedule:
    if "interval" in keywords:
        keywords = keywords | {"interval": timedelta(seconds=keywords["interval"])}
    return Schedule(**keywords)


def _require_answer(url: str) -> None:
    """Wait until the server answers; it may have been started together with this process.

    Raises:
        ConfigError: The server does not answer in time, or refuses the request.
    """
    problem = server_problem(SECONDS_FOR_SERVER, starting=True)
    if problem is not None:
        raise ConfigError(
            f"the Prefect server at {url} cannot be used ({problem}); "
            "start it, or correct PREFECT_API_URL"
        )


def _close_runs(name: str, stopped: Collection[UUID]) -> None:
    """Set a final state for the runs that this process stopped; Prefect's runner does not.

    A second SIGTERM does not interrupt it: the process is about to exit anyway.

    Args:
        name: Name of the deployments.
        stopped: IDs of the runs that this process stopped. The other runs of the deployments belong
            to another `serve` of the same store, and continue.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not stopped or server_problem(SECONDS_TO_ANSWER_AT_STOP) is not None:
        return  # when the server is back, its crash detection closes them
    with get_client(sync_client=True) as client:
        for each in (run for run in _open_runs(client, name) if run.id in stopped):
            client.set_flow_run_state(each.id, _final_state(each), force=True)


def _final_state(run: Any) -> State[Any]:
    """Return the state of a run that `serve` stopped: cancelled, if a person asked for that."""
    if run.state.is_cancelling():
        record_cancellation(run)
        return Cancelled(message="The run was cancelled, and nnbuild serve was stopped.")
    return Crashed(
        message="nnbuild serve was stopped; the next run resumes from what is in the store."
    )


def _open_runs(client: Any, name: str) -> list[Any]:
    """Return the flow runs of a deployment that have started or are starting.

    Those that wait for an approval are paused; their processes run.
    """
    states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "PAUSED", "CANCELLING"]}}}
    runs: list[Any] = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(states),
        deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [name]}}),
    )
    return runs
