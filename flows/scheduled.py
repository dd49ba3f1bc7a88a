"""Retraining that nobody watches: what was overtaken is skipped, what waits is taken up, what hangs is ended."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.hooks import on_bad_end
from flows.overtaking import SKIPPED, overtaken_at
from flows.retrain import retrain
from nnbuild import machine
from nnbuild.config import RunConfig, resolve
from nnbuild.errors import ConfigError, StoreError
from nnbuild.runtime.text import sanitize
from nnbuild.store import Run, Store
from nnbuild.watchdog import ended_after


def _name() -> str:
    config = RunConfig.model_validate(flow_run.parameters.get("config") or {})
    name = f"{config.model.name}-{Path(config.dataset.name).stem}"
    return sanitize(f"{name}-{flow_run.scheduled_start_time:%Y%m%dT%H%M}")


@flow(
    name="scheduled-retrain",
    version=machine.code_version(),
    flow_run_name=_name,
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
        overtaken: what becomes of a late run if one of the same settings has begun since it was due.
    """
    without_fallback(config)
    if overtaken == "skip" and (begun := overtaken_at()):
        told = (
            "Overtaken: a run of the same settings has begun since this one was due, "
            f"at {begun:%Y-%m-%d %H:%M:%S} UTC."
        )
        return Completed(name=SKIPPED, message=told)
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
            same = (
                run.config.digest() == wanted
                and run.record["code_version"] == machine.code_version()
            )
        except StoreError:
            continue
        if same and not each.held:
            return each.run_id
    return None
