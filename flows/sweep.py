"""Run a sweep: its trials in sequence or on a cluster, then decide on the best one's promotion."""

import time
from typing import Any

from prefect import flow
from prefect.transactions import transaction

from flows.embedded_server import prompt_stop
from flows.flow_runs import FLOW_DEFAULTS, approve, sweep_name
from nnbuild import pipeline
from nnbuild import sweep as sweeps
from nnbuild.pipeline.run import run_context
from nnbuild.store import Run
from nnbuild.sweep import Sweep, SweepConfig, SweepResult, SweepRunner
from tasks.artifacts import artifact_key, show_table
from tasks.displays import active_displays
from tasks.retrain import commit, decide, report
from tasks.sweep import make_trial

_SECONDS_BETWEEN_POLLS = 0.2


@flow(name="sweep", flow_run_name=sweep_name, **FLOW_DEFAULTS)
def sweep(
    config: SweepConfig | None = None,
    store: str | None = None,
    sweep_id: str | None = None,
    workers: int = 0,
) -> SweepResult:
    """Run the missing trials of a sweep; called again with the same parameters, resume it.

    Args:
        config: Sweep configuration: the search space, and the settings that all runs share.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        sweep_id: ID of the sweep; made of the configuration's digest if not given.
        workers: Number of trials that are submitted to the task runner at a time; 0 runs them in
            this process, one after another.
    """
    opened = sweeps.open_sweep(config, store, sweep_id)
    sweeps.require_possible(opened)
    with prompt_stop(), sweeps.sweep_context(opened):
        runner = SweepRunner(opened)
        if workers:
            _submit_trials(runner, opened, workers)
        else:
            while (trial := runner.next()) is not None:
                runner.record(make_trial(opened, trial))
        best = opened.unfinished_run(runner.best.runs[0]) if runner.best else None
        if best is not None:
            _decide_and_commit(best)
        result = runner.result()
        for display in active_displays():
            display.sweep_finished(result)
        title = f"Sweep {result.sweep_id}, the best by {result.objective} first"
        key = artifact_key("nnbuild-sweep", str(opened.store.root), _dataset_of(opened, result))
        show_table(key, rows_of(result), title)
        return result


def _submit_trials(runner: SweepRunner, opened: Sweep, workers: int) -> None:
    """Run trials in the task runner, at most `workers` at a time."""
    pending: list[Any] = []  # Prefect's type of a future hides `wrapped_future`
    while True:
        while len(pending) < workers and (trial := runner.next()) is not None:
            pending.append(make_trial.submit(opened, trial))
        if not pending:
            return
        finished = [future for future in pending if future.wrapped_future.done()]
        for future in finished:
            runner.record(future.result())
        pending = [future for future in pending if future not in finished]
        if not finished:
            time.sleep(_SECONDS_BETWEEN_POLLS)


def _decide_and_commit(run: Run) -> None:
    """Run the last tasks of `flows.retrain.retrain`; the trial has done the others."""
    with run_context(run), transaction() as publication:
        publication.set("run", run)
        data = pipeline.load_data(run)
        decided = decide(run, data)
        reported = report(run, data, wait_for=[decided])
        if approve(run, data, decided):
            reported = report(run, data, wait_for=[decided])
        commit(run, wait_for=[reported])


def _dataset_of(opened: Sweep, result: SweepResult) -> str | None:
    return opened.store.manifest(result.best).row.dataset if result.best else None


def rows_of(result: SweepResult) -> list[dict[str, Any]]:
    """Return one row per trial, for a table."""
    return [
        {
            "trial": trial.number,
            **trial.values,
            result.objective: trial.value,
            "state": trial.state,
            "run": trial.runs[0] if trial.runs else None,
            "error": trial.error,
        }
        for trial in result.trials
    ]
