"""Scheduled retraining: superseded runs are skipped, stopped ones resumed, hanging ones ended."""

from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.hooks import on_bad_end, record_cancellation
from flows.overtaking import SKIPPED, adopt, origin, overtaken_at
from flows.retrain import retrain
from nnbuild.config.schema import RunConfig, ScheduledConfig
from nnbuild.pipeline.run import resumable
from nnbuild.runtime import environment
from nnbuild.runtime.signals import hard_timeout
from nnbuild.runtime.text import sanitize
from nnbuild.store import Run, Store
from tasks.prefect_side import logger

WITHDRAWN = "The schedule that planned this run is no longer part of the deployment."
CHANGED = "The settings of the deployment were changed since this run was planned; it takes them."


def _name() -> str:
    return _name_of(flow_run.parameters)


def _name_of(parameters: dict[str, Any]) -> str:
    config = RunConfig.model_validate(parameters.get("config") or {})
    dataset = Path(config.dataset.name).stem
    name = f"{config.model.name}-{dataset}-{flow_run.scheduled_start_time:%Y%m%dT%H%M}"
    return sanitize(name)


@flow(
    name="scheduled-retrain",
    version=environment.code_version(),
    flow_run_name=_name,
    on_failure=[on_bad_end],
    on_crashed=[on_bad_end],
    on_cancellation=[record_cancellation, on_bad_end],
)
def scheduled_retrain(
    config: ScheduledConfig = ScheduledConfig(),  # noqa: B008  (frozen)
    store: str | None = None,
    timeout_seconds: Annotated[float, Field(ge=1)] | None = None,
    overtaken: Literal["skip", "run"] = "skip",
) -> Any:
    """Retrain on a schedule.

    Args:
        config: Settings of the run; it never falls back to other data.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        timeout_seconds: Seconds after which the run is asked to stop with a checkpoint; half a
            minute later it is killed. No limit if not given.
        overtaken: Fate of a late run if another one of the same settings has begun since it was
            due.
    """
    due = origin()
    if due.withdrawn:
        return Completed(name=SKIPPED, message=WITHDRAWN)
    if due.parameters is not None:
        logger().warning(CHANGED)
        adopt(due.parameters, _name_of(due.parameters))
        return _retrain_due(**scheduled_retrain.validate_parameters(due.parameters))
    return _retrain_due(config, store, timeout_seconds, overtaken)


def _retrain_due(
    config: ScheduledConfig = ScheduledConfig(),  # noqa: B008  (frozen)
    store: str | None = None,
    timeout_seconds: float | None = None,
    overtaken: str = "skip",
) -> Any:
    """Retrain with the flow's parameters, unless another run has begun that does the same."""
    settings = config.run_config()
    if overtaken == "skip" and (begun := overtaken_at()):
        message = (
            "Overtaken: a run of the same settings has begun since this one was due, "
            f"at {begun:%Y-%m-%d %H:%M:%S} UTC."
        )
        return Completed(name=SKIPPED, message=message)
    with hard_timeout(timeout_seconds):
        return retrain.fn(settings, store, resume=waiting(Store(store), settings))


def waiting(store: Store, config: RunConfig) -> str | None:
    """Return the id of the newest stopped run that a scheduled run resumes, if there is one.

    A run that a person has cancelled waits for a person. If this flow run was tried before and left
    a run that is not resumed, that run waits too, and is no longer this flow run's.
    """
    mine = str(flow_run.id) if flow_run.id else None

    def refused(run: Run) -> str | None:
        own = mine is not None and run.record.get("flow_run_id") == mine
        return None if own or not _was_cancelled(run) else "a person has cancelled it"

    run, remarks = resumable(store, config, refused)
    for remark in remarks:
        logger().info("%s", remark)
    before = store.run_of_flow(mine) if mine is not None else None
    if before is not None and (run is None or before.run_id != run.run_id):
        before.release()
    return run.run_id if run is not None else None


def _was_cancelled(run: Run) -> bool:
    """Say whether a person has cancelled a run, by its own record or by the server's.

    The record can lack it where no process was left to write it, the server where its database was
    lost.
    """
    flow_run_id = run.record.get("flow_run_id")
    if run.was_cancelled or flow_run_id is None:
        return run.was_cancelled
    with get_client(sync_client=True) as client:
        try:
            states = client.read_flow_run_states(flow_run_id)
        except ObjectNotFound:
            return False
    return any(each.is_cancelling() or each.is_cancelled() for each in states)
