"""Run a trial: a run for each seed, and their mean objective on the validation examples.

A trial can be run again: finished runs are loaded, and a run that was stopped is resumed.
"""

import math
from typing import NamedTuple

from nnbuild.config.sections import TrialTag
from nnbuild.errors import DataError, Interrupted, NnbuildError, PrunedError, StoreError
from nnbuild.pipeline.run import decide_and_commit, open_run, run_context, train_and_evaluate
from nnbuild.runtime.progress import NullProgress, ProgressCallback
from nnbuild.store.step_results import Calibrated
from nnbuild.sweep.study import Study
from nnbuild.sweep.sweep import ShouldPrune, Sweep, Trial, TrialResult


class _Failure(NamedTuple):
    """Why a trial did not finish.

    Attributes:
        message: Error message, on one line.
        is_pruned: Whether the sweep gave the run up.
    """

    message: str
    is_pruned: bool = False


def make_trial(
    sweep: Sweep, trial: Trial, *, progress: ProgressCallback | None = None
) -> TrialResult:
    """Make the runs of a trial that are not there yet.

    The run of the first seed stays in staging before the promotion decision: it may be the best of
    the sweep, which goes to the gate. The others are committed.

    Args:
        sweep: Sweep, locked by `nnbuild.sweep.sweep_context`.
        trial: Trial to run.
        progress: Callback for finished steps and epochs.

    Returns:
        State and objective of the trial; a failure of a run is a result too.

    Raises:
        DataError: The data cannot be used, and no run of the sweep has succeeded or failed so far.
        StoreError: The store, or Optuna's storage, cannot be used.
        Interrupted: A signal stopped a run, which can be resumed.
    """
    runs: list[str] = []
    values: list[float] = []
    should_prune = _pruning(sweep, trial)
    for seed in range(sweep.config.seeds):
        reporter = ObjectiveReporter(
            progress, sweep.config.objective, should_prune if seed == 0 else None
        )
        try:
            run_id = _make_run(sweep, trial, seed, reporter)
        except (StoreError, Interrupted):
            raise
        except Exception as error:
            known = sweep.runs()
            if isinstance(error, DataError) and not known:
                raise  # all trials have the same data
            failed = known.get((trial.number, sweep.config.run.seed + seed))
            return _unfinished(trial, [*runs, *([failed] if failed else [])], _failure_of(error))
        runs.append(run_id)
        if (failure := _recorded_failure(sweep, run_id)) is not None:
            return _unfinished(trial, runs, failure)
        values.append(objective_of(sweep, run_id))
    mean = math.fsum(values) / len(values)
    if not math.isfinite(mean):
        message = f"{sweep.config.objective} is {mean}, expected a finite number"
        return _unfinished(trial, runs, _Failure(message))
    return TrialResult(**trial.model_dump(), state="finished", value=mean, runs=tuple(runs))


def _pruning(sweep: Sweep, trial: Trial) -> ShouldPrune | None:
    """Return the pruning of the run of the first seed, if the sweep prunes."""
    if not (sweep.config.search and sweep.config.prune):
        return None
    return Study(sweep).pruning(trial.number)


def _make_run(sweep: Sweep, trial: Trial, seed: int, progress: ProgressCallback) -> str:
    """Make the run of a seed, counted from 0, and return its ID."""
    config = sweep.config.config_of(
        trial.values, seed=seed, tag=TrialTag(sweep=sweep.sweep_id, number=trial.number)
    )
    known = sweep.runs().get((trial.number, config.seed))
    if known is not None and sweep.unfinished_run(known) is None:
        return known
    sweep.store.require()  # a worker must not create a store that disappeared again
    run = open_run(config, sweep.root, resume=known)
    with run_context(run):
        train_and_evaluate(run, progress)
        if seed > 0:
            decide_and_commit(run, gate_skip_reason=_gate_skip_reason(sweep))
    return run.run_id


def commit_without_gate(sweep: Sweep, result: TrialResult) -> None:
    """Commit the run of a trial that is not the best, and skip the gate."""
    for run_id in result.runs[:1]:
        run = sweep.unfinished_run(run_id)
        if run is not None:
            with run_context(run):
                decide_and_commit(run, gate_skip_reason=_gate_skip_reason(sweep))


def _gate_skip_reason(sweep: Sweep) -> str:
    return f"trial of sweep {sweep.sweep_id}: only the best by validation goes to the gate"


def _recorded_failure(sweep: Sweep, run_id: str) -> _Failure | None:
    """Return why a run failed; None if it has not."""
    if sweep.unfinished_run(run_id) is not None:
        return None
    manifest = sweep.store.manifest(run_id)
    if manifest.row.status != "failed":
        return None
    return _Failure(str(manifest.row.error), manifest.error_type == PrunedError.__name__)


def _failure_of(error: Exception) -> _Failure:
    expected = isinstance(error, NnbuildError)
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    return _Failure(" ".join(message.split()), isinstance(error, PrunedError))


def _unfinished(trial: Trial, runs: list[str], failure: _Failure) -> TrialResult:
    return TrialResult(
        **trial.model_dump(),
        state="pruned" if failure.is_pruned else "failed",
        value=None,
        runs=tuple(runs),
        error=failure.message,
    )


def objective_of(sweep: Sweep, run_id: str) -> float:
    """Return the objective of a fitted run: of its final network, on the validation examples.

    The last value of the history can differ: it is of weights before they were averaged, or of the
    last member of an ensemble.

    Raises:
        StoreError: The run does not have the objective.
    """
    run = sweep.unfinished_run(run_id)
    metrics: dict[str, float]
    if run is None:
        calibrated = sweep.store.manifest(run_id).steps.calibrate_model
    else:
        calibrated = run.load_result(Calibrated)
    metrics = calibrated.validation if calibrated else {}
    name = sweep.config.objective.removeprefix("val_")
    if name not in metrics:
        raise StoreError(
            f"run {run_id} has no {name} on the validation examples; begin another sweep"
        )
    return float(metrics[name])


class ObjectiveReporter(NullProgress):
    """Progress callback that prunes a run by its objective.

    Args:
        progress: Callback to pass the calls on to, if any.
        objective: Name of the metric to report.
        should_prune: Function that decides on each epoch; None never prunes.
    """

    def __init__(
        self, progress: ProgressCallback | None, objective: str, should_prune: ShouldPrune | None
    ) -> None:
        self._progress = progress or NullProgress()
        self._objective, self._should_prune = objective, should_prune

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Pass the steps on."""
        self._progress.step(epoch, epochs, done, steps, metrics)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        """Pass the epoch on, and report its objective.

        Raises:
            PrunedError: The run is to be pruned, and it has epochs left.
        """
        self._progress.epoch(epoch, epochs, metrics, seconds)
        value = metrics.get(self._objective)
        if self._should_prune is None or value is None:
            return
        if self._should_prune(epoch, value) and epoch < epochs:
            raise PrunedError(
                f"pruned at epoch {epoch} of {epochs}: "
                f"{self._objective} {value:.4g} is worse than the median"
            )
