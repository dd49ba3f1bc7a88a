"""Run a sweep: the next trial, the results so far, and the best run, which goes to the gate."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import ConfigError
from nnbuild.pipeline.run import decide_and_commit, run_context
from nnbuild.runtime.progress import ProgressCallback
from nnbuild.scoring.dask import connect
from nnbuild.sweep.space import SweepConfig, points
from nnbuild.sweep.study import Study, require_possible
from nnbuild.sweep.sweep import Sweep, Trial, TrialResult, open_sweep, sweep_context
from nnbuild.sweep.trial import commit_without_gate, make_trial


class SweepResult(BaseModel):
    """Result of a sweep.

    Attributes:
        trials: Results of the trials, the best by validation first, those without a value last.
        best: ID of the run that went to the gate, which is the best trial's first seed; None if no
            trial finished.
        promoted: Whether that run became the champion.
    """

    model_config = ConfigDict(frozen=True)
    sweep_id: str
    objective: str
    trials: tuple[TrialResult, ...]
    best: str | None
    promoted: bool


class SweepRunner:
    """The trials of a sweep, first those that were begun before, then new ones, and their results.

    Args:
        sweep: Sweep, locked by `nnbuild.sweep.sweep_context`.

    Attributes:
        results: Results that were recorded so far.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._study = Study(sweep) if sweep.config.search else None
        self._trials = self._search_trials(self._study) if self._study else self._grid_trials()
        self.results: list[TrialResult] = []

    def next(self) -> Trial | None:
        """Return the next trial, or None if there are no more."""
        return next(self._trials, None)

    def _grid_trials(self) -> Iterator[Trial]:
        for number, values in enumerate(points(self._sweep.config.grid)):
            yield Trial(number=number, values=values)

    def _search_trials(self, study: Study) -> Iterator[Trial]:
        begun = study.begun()
        yield from begun
        for _ in range(len(begun), int(self._sweep.config.trials or 0)):
            yield study.ask()

    def record(self, result: TrialResult) -> None:
        """Record the result of a trial, and commit each run that cannot be the best any more."""
        before = self.best
        self.results.append(result)
        if self._study is not None:
            self._study.record(result)
        best = self.best
        for each in (result, before):
            if each is not None and each is not best:
                commit_without_gate(self._sweep, each)

    @property
    def best(self) -> TrialResult | None:
        """Return the best result by validation so far; of equal ones, the first."""
        ranked = self.ranked()
        return ranked[0] if ranked and ranked[0].value is not None else None

    def ranked(self) -> list[TrialResult]:
        """Return the results so far, the best first."""
        sign = -1 if self._sweep.config.objective == "val_accuracy" else 1

        def rank(result: TrialResult) -> tuple[bool, float, int]:
            return result.value is None, sign * (result.value or 0.0), result.number

        return sorted(self.results, key=rank)

    def result(self) -> SweepResult:
        """Return the result of the sweep, once its best run is committed.

        Raises:
            ConfigError: No trial could begin.
        """
        if self.results and not self._sweep.runs():
            raise ConfigError(f"no trial could begin; the first error: {self.results[0].error}")
        best = self.best.runs[0] if self.best else None
        row = self._sweep.store.manifest(best).row if best else None
        return SweepResult(
            sweep_id=self._sweep.sweep_id,
            objective=self._sweep.config.objective,
            trials=tuple(self.ranked()),
            best=best,
            promoted=row is not None and row.promoted,
        )


def make_sweep(
    config: SweepConfig | None,
    store: Path | str | None = None,
    *,
    sweep_id: str | None = None,
    progress: ProgressCallback | None = None,
) -> SweepResult:
    """Run a whole sweep without Prefect; the same call again makes what is missing.

    Args:
        config: Configuration from `nnbuild.sweep.sweep_config`; None to resume a sweep by its ID.
        store: Root of the store; `$NNBUILD_STORE` or `./nnbuild-store` if None.
        sweep_id: ID of the sweep; made from the configuration's digest if None.
        progress: Callback for finished steps and epochs.

    Returns:
        The trials, the best first, and what became of the best run.

    Raises:
        InputError: An argument, the data or the model cannot be used.
        Interrupted: A signal stopped the sweep; the same call resumes it.
    """
    sweep = open_sweep(config, store, sweep_id)
    require_possible(sweep)
    with sweep_context(sweep):
        runner = SweepRunner(sweep)
        while (trial := runner.next()) is not None:
            runner.record(make_trial(sweep, trial, progress=progress))
        run = sweep.unfinished_run(runner.best.runs[0]) if runner.best else None
        if run is not None:
            with run_context(run):
                decide_and_commit(run)
        return runner.result()


def workers_of(sweep: Sweep, address: str) -> int:
    """Return how many trials a cluster can run at a time: one for each worker.

    Args:
        sweep: Sweep with a store in a folder that the workers see under the same path.
        address: Address of the scheduler, such as `tcp://127.0.0.1:8786`.

    Raises:
        ConfigError: The scheduler does not answer, Dask is not installed, there is no worker, a
            worker has several threads, or the store is not shared with the workers.
    """
    if sweep.store.is_remote:
        raise ConfigError(
            f"store {sweep.root} is remote, and a sweep on Dask needs a store in a folder that all "
            "workers see; give such a folder"
        )
    with connect(address) as client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ConfigError(
            f"the Dask cluster at {address} has no workers; "
            f"start `dask worker {address} --nthreads 1`"
        )
    if any(each["nthreads"] > 1 for each in workers.values()):
        # Seeds and threads are global to a process: two fits in one would change each other.
        raise ConfigError(
            f"a worker of the Dask cluster at {address} has several threads, expected one; "
            "start each with --nthreads 1"
        )
    return len(workers)
