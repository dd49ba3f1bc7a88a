"""A sweep: trials one after another, or on a cluster → the best by validation through the gate."""

import time
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.retrain import approve
from nnbuild import sweep as sweeping
from nnbuild.pipeline.run import run_context as working_on_run
from nnbuild.store import Run
from nnbuild.store.step_results import (
    Calibrated,
    Evaluated,
    ExportedModel,
    HistoryTable,
    LoadedData,
    Scored,
)
from nnbuild.sweep import Sweep, SweepConfig, SweepResult, SweepRunner
from tasks.artifacts import show_table
from tasks.retrain import commit, decide, report
from tasks.sweep import make_trial

_SECONDS_BETWEEN_LOOKS = 0.2
_DONE = (LoadedData, HistoryTable, ExportedModel, Evaluated, Calibrated, Scored)


def _name() -> str:
    parameters: dict[str, Any] = flow_run.parameters
    return f"sweep-{parameters['sweep_id']}" if parameters.get("sweep_id") else "sweep"


@flow(name="sweep", flow_run_name=_name)
def sweep(
    config: SweepConfig | None = None,
    store: str | None = None,
    sweep_id: str | None = None,
    workers: int = 0,
) -> SweepResult:
    """Make every trial of a sweep that is not there yet; the same parameters again go on with one that was stopped.

    Args:
        config: what it goes over.
        store: its root; $NNBUILD_STORE or ./nnbuild-store if not given.
        sweep_id: its name; made of the config's digest if not given.
        workers: how many trials the task runner is given at a time; 0 makes them here, one after another.
    """
    opened = sweeping.open_sweep(config, store, sweep_id)
    sweeping.require_possible(opened)
    with sweeping.sweep_context(opened):
        plan = SweepRunner(opened)
        if workers:
            _submit(plan, opened, workers)
        else:
            while (trial := plan.next()) is not None:
                plan.record(make_trial(opened, trial))
        best = opened.unfinished_run(plan.best.runs[0]) if plan.best else None
        if best is not None:
            with working_on_run(best):
                _through_the_gate(best)
        swept = plan.result()
        show_table(
            "nnbuild-sweep",
            rows_of(swept),
            f"Sweep {swept.sweep_id}, the best by {swept.objective} first",
        )
        return swept


def _submit(plan: SweepRunner, opened: Sweep, workers: int) -> None:
    """Keep so many trials under way."""
    waiting: list[Any] = []
    while True:
        while len(waiting) < workers and (trial := plan.next()) is not None:
            waiting.append(make_trial.submit(opened, trial))
        if not waiting:
            return
        done = [future for future in waiting if future.wrapped_future.done()]
        for future in done:
            plan.record(future.result())
        waiting = [future for future in waiting if future not in done]
        if not done:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _through_the_gate(run: Run) -> None:
    """The last steps of `flows.retrain`, as its tasks."""
    data, history, exported, evaluated, calibrated, scored = (
        run.load_result(kind) for kind in _DONE
    )
    decided = approve(run, decide(run, data, evaluated, scored))
    reported = report(run, data, calibrated, decided)
    commit(run, history, exported, reported)


def rows_of(swept: SweepResult) -> list[dict[str, Any]]:
    """A row for each trial, for a table."""
    return [
        {
            "trial": trial.number,
            **trial.values,
            swept.objective: trial.value,
            "state": trial.state,
            "run": trial.runs[0] if trial.runs else None,
            "error": trial.error,
        }
        for trial in swept.trials
    ]
