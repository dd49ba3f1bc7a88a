"""Retraining that nobody watches: what was overtaken is skipped, what waits is taken up, what hangs is ended."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.hooks import on_bad_end
from flows.retrain import retrain
from nnbuild import machine
from nnbuild.config import RunConfig, resolve
from nnbuild.errors import ConfigError, StoreError
from nnbuild.store import Run, Store
from nnbuild.watchdog import ended_after

SKIPPED = "Skipped"
_DUE = ["SCHEDULED", "PENDING", "RUNNING", "COMPLETED"]  # due, or already made


@flow(
    name="scheduled-retrain",
    flow_run_name="{config.model.name}-{config.dataset.name}",
    on_failure=[on_bad_end],
    on_crashed=[on_bad_end],
    on_cancellation=[on_bad_end],
)
def scheduled_retrain(
    config: RunConfig = RunConfig(),  # noqa: B008  (frozen)
    store: str | None = None,
    timeout_seconds: float | None = None,
    overtaken: Literal["skip", "run"] = "skip",
) -> Any:
    """Retrain on a schedule.

    Args:
        config: what is trained, on what and how; it never falls back to other data.
        store: its root; $NNBUILD_STORE or ./nnbuild-store if not given.
        timeout_seconds: after so many the run is asked to stop with a checkpoint, and killed half a minute later.
        overtaken: what becomes of a late run if the next one of the same parameters is due already.
    """
    without_fallback(config)
    if overtaken == "skip" and (after := _overtaken_by()):
        return Completed(name=SKIPPED, message=f"Overtaken: the run of {after:%Y-%m-%d %H:%M:%S} UTC is due already.")
    with ended_after(timeout_seconds):
        return retrain.fn(config, store, resume=waiting(Store(store), config))


def without_fallback(config: RunConfig) -> RunConfig:
    """The config, if it trains on what it names or not at all.

    Raises:
        ConfigError: it would fall back to other data.
    """
    if config.dataset.fallback is not None:
        raise ConfigError(
            f"dataset.fallback is {config.dataset.fallback!r}, and a scheduled run never falls back; leave it away"
        )
    return config


def waiting(store: Store, config: RunConfig) -> str | None:
    """The newest run that was stopped with this config, by this code: the next scheduled run goes on with it."""
    wanted = resolve(config).digest()
    for each in reversed(store.unfinished()):
        run: Run = store.unfinished_run(each.run_id)
        try:
            same = run.config.digest() == wanted and run.record["code_version"] == machine.code_version()
        except StoreError:
            continue
        if same and not each.held:
            return each.run_id
    return None


def _overtaken_by() -> datetime | None:
    """When the next run of the same deployment and parameters was due, if that is past."""
    with get_client(sync_client=True) as client:
        mine = client.read_flow_run(flow_run.id)
        if mine.deployment_id is None or mine.expected_start_time is None:
            return None
        window = {
            "after_": mine.expected_start_time + timedelta(milliseconds=1),
            "before_": datetime.now(UTC),
        }
        due = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(
                {
                    "deployment_id": {"any_": [mine.deployment_id]},
                    "expected_start_time": window,
                    "state": {"type": {"any_": _DUE}},
                }
            )
        )
    others = (each for each in due if each.id != mine.id and each.parameters == mine.parameters)
    times = [each.expected_start_time for each in others if each.state_name != SKIPPED]
    return min((time for time in times if time is not None), default=None)
