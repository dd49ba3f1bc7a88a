"""One trial: its runs, one for each seed, and what they came to by validation.

A trial can be made again: what is there is recalled.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from nnbuild.config.sections import TrialTag
from nnbuild.errors import DataError, Interrupted, NnbuildError, PrunedError, StoreError
from nnbuild.pipeline.run import decide_and_commit, open_run, run_context, train_and_evaluate
from nnbuild.store.step_results import Calibrated
from nnbuild.sweep.study import Study
from nnbuild.sweep.sweep import Report, Sweep, Trial, TrialResult

_PRUNED = "gave up at epoch"


def make_trial(sweep: Sweep, trial: Trial, *, watch: Any = None) -> TrialResult:
    """Make the runs of a trial that are not there yet.

    The first seed's run is left in front of the gate, in staging: it may be the one that the sweep sends there. The
    others are committed.

    Args:
        sweep: held by `nnbuild.sweep.sweep_context`.
        trial: what is tried.
        watch: is told of steps and epochs, see `nnbuild.training.ProgressCallback`.

    Raises:
        DataError: the data cannot be used, before any run of the sweep has succeeded or failed.
        StoreError: the store, or the storage, cannot be used.
        Interrupted: a signal; the run waits.
    """
    runs: list[str] = []
    values: list[float] = []
    report = _reporter(sweep, trial)
    for seed in range(sweep.config.seeds):
        watching = ObjectiveReporter(watch, sweep.config.objective, report if seed == 0 else None)
        try:
            run_id = _make_run(sweep, trial, seed, watching)
        except (StoreError, Interrupted):
            raise
        except Exception as error:
            known = sweep.runs()
            if isinstance(error, DataError) and not known:
                raise  # nothing that varies can mend it
            failed = known.get((trial.number, sweep.config.run.seed + seed))
            return _ended(trial, [*runs, *([failed] if failed else [])], error)
        runs.append(run_id)
        if (told := _failure(sweep, run_id)) is not None:
            return _ended(trial, runs, told)
        values.append(value_of(sweep, run_id))
    mean = math.fsum(values) / len(values)
    if not math.isfinite(mean):
        return _ended(trial, runs, f"{sweep.config.objective} is {mean}, expected a finite number")
    return TrialResult(**trial.model_dump(), state="finished", value=mean, runs=tuple(runs))


def _reporter(sweep: Sweep, trial: Trial) -> Report | None:
    """Given epoch (from 1) and objective of the first seed's run, it says whether to give up."""
    if not (sweep.config.search and sweep.config.prune):
        return None
    return Study(sweep).reporter(trial.number)


def _make_run(sweep: Sweep, trial: Trial, seed: int, watch: "ObjectiveReporter") -> str:
    config = sweep.config.config_of(
        trial.values, seed=seed, tag=TrialTag(sweep=sweep.sweep_id, number=trial.number)
    )
    known = sweep.runs().get((trial.number, config.seed))
    if known is not None and sweep.waiting(known) is None:
        return known
    sweep.store.require()  # on a worker, a new run would bring back a store that disappeared
    run = open_run(config, sweep.root, resume=known)
    with run_context(run):
        train_and_evaluate(run, watch)
        if seed > 0:
            decide_and_commit(run, passed_over=gate_skip_reason(sweep))
    return run.run_id


def gate_skip_reason(sweep: Sweep) -> str:
    """Why a run of a sweep is kept from the gate."""
    return (
        f"a trial of sweep {sweep.sweep_id}, of which only the best by validation goes to the gate"
    )


def commit_without_gate(sweep: Sweep, result: TrialResult) -> None:
    """Commit what a trial has left in front of the gate, without the gate."""
    for run_id in result.runs[:1]:
        run = sweep.waiting(run_id)
        if run is not None:
            with run_context(run):
                decide_and_commit(run, passed_over=gate_skip_reason(sweep))


def _failure(sweep: Sweep, run_id: str) -> str | None:
    """Why a run has failed; None if it has not."""
    if sweep.waiting(run_id) is not None:
        return None
    row = sweep.store.manifest(run_id).row
    return str(row.error) if row.status == "failed" else None


def _ended(trial: Trial, runs: list[str], error: Exception | str) -> TrialResult:
    unexpected = isinstance(error, Exception) and not isinstance(error, NnbuildError)
    told = " ".join((f"{type(error).__name__}: {error}" if unexpected else str(error)).split())
    pruned = told.startswith(_PRUNED)
    state: Literal["pruned", "failed"] = "pruned" if pruned else "failed"
    return TrialResult(**trial.model_dump(), state=state, value=None, runs=tuple(runs), error=told)


def value_of(sweep: Sweep, run_id: str) -> float:
    """The objective of a run that was fitted: of the network that was kept, on its validation examples.

    The history's last value can be another: of weights before they were averaged, or of an ensemble's last member.

    Raises:
        StoreError: the run does not have it.
    """
    run = sweep.waiting(run_id)
    if run is None:
        calibrated = sweep.store.manifest(run_id).steps.calibrate_model
    else:
        calibrated = run.load_result("calibrate_model", Calibrated)
    told = calibrated.validation if calibrated else {}
    name = sweep.config.objective.removeprefix("val_")
    if name not in told:
        raise StoreError(
            f"run {run_id} tells no {name} on its validation examples; begin another sweep"
        )
    return float(told[name])


class ObjectiveReporter:
    """Passes on what a fit says, and stops it where a report asks for that.

    Args:
        watch: who else is told, if anyone.
        objective: which metric is reported.
        report: is given epoch and objective, and says whether to give up.
    """

    def __init__(self, watch: Any, objective: str, report: Report | None) -> None:
        self._watch, self._objective, self._report = watch, objective, report

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Passes on."""
        if self._watch is not None:
            self._watch.step(epoch, epochs, done, steps, metrics)

    def epoch(self, epoch: int, epochs: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Passes on, and reports.

        Raises:
            PrunedError: the report says so, and there are epochs left.
        """
        if self._watch is not None:
            self._watch.epoch(epoch, epochs, metrics, seconds)
        value = metrics.get(self._objective)
        if self._report is None or value is None:
            return
        if self._report(epoch, value) and epoch < epochs:
            raise PrunedError(
                f"{_PRUNED} {epoch} of {epochs}: {self._objective} {value:.4g}, worse than the median"
            )
