"""Which trial is next, what they came to, and which of them goes to the gate."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import ConfigError
from nnbuild.pipeline.run import decide_and_commit
from nnbuild.pipeline.run import run_context as working_on_run
from nnbuild.sweep.space import SweepConfig, points
from nnbuild.sweep.study import Study, require_possible
from nnbuild.sweep.sweep import Sweep, Trial, TrialResult, open_sweep, sweep_context
from nnbuild.sweep.trial import commit_without_gate, make_trial


class SweepResult(BaseModel):
    """How a sweep ended.

    Attributes:
        trials: the best first, by validation; those without a value last.
        best: the run that went to the gate: the best trial's first seed; None if no trial finished.
        promoted: whether that run became the champion.
    """

    model_config = ConfigDict(frozen=True)
    sweep_id: str
    objective: str
    trials: tuple[TrialResult, ...]
    best: str | None
    promoted: bool


class SweepRunner:
    """The trials of a sweep: those that were begun first, then new ones. Modifies the store by `tell`.

    Args:
        sweep: held by `nnbuild.sweep.sweep_context`.

    Attributes:
        results: what was told so far.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._study = Study(sweep) if sweep.config.search else None
        self._trials = self._asked(self._study) if self._study else self._grid()
        self.results: list[TrialResult] = []

    def next(self) -> Trial | None:
        """The next trial; None if there are no more."""
        return next(self._trials, None)

    def _grid(self) -> Iterator[Trial]:
        for number, values in enumerate(points(self._sweep.config.grid)):
            yield Trial(number=number, values=values)

    def _asked(self, study: Study) -> Iterator[Trial]:
        begun = study.begun()
        yield from begun
        for _ in range(len(begun), int(self._sweep.config.trials or 0)):
            yield study.ask()

    def tell(self, result: TrialResult) -> None:
        """Note what came of a trial. Whichever run cannot be the best any more is committed, without the gate."""
        before = self.best
        self.results.append(result)
        if self._study is not None:
            self._study.tell(result)
        best = self.best
        for each in (result, before):
            if each is not None and each is not best:
                commit_without_gate(self._sweep, each)

    @property
    def best(self) -> TrialResult | None:
        """The best by validation so far; of equals, the first."""
        ranked = self.ranked()
        return ranked[0] if ranked and ranked[0].value is not None else None

    def ranked(self) -> list[TrialResult]:
        """The results, the best first."""
        sign = -1 if self._sweep.config.objective == "val_accuracy" else 1

        def place(result: TrialResult) -> tuple[bool, float, int]:
            return result.value is None, sign * (result.value or 0.0), result.number

        return sorted(self.results, key=place)

    def result(self) -> SweepResult:
        """What the sweep came to, once its best run is committed.

        Raises:
            ConfigError: not one trial could begin.
        """
        if self.results and not self._sweep.runs():
            raise ConfigError(f"no trial could begin; the first one: {self.results[0].error}")
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
    watch: Any = None,
) -> SweepResult:
    """The whole sweep in one call, without Prefect; the same call again makes what is missing.

    Args:
        config: what it goes over, from `nnbuild.sweep.sweep_config`; None to go on with a sweep by its id.
        store: its root.
        sweep_id: its name; made of the config's digest if not given.
        watch: is told of steps and epochs, see `nnbuild.training.ProgressCallback`.

    Raises:
        InputError: something that was given cannot be used.
        Interrupted: a signal; the same call goes on.
    """
    sweep = open_sweep(config, store, sweep_id)
    require_possible(sweep)
    with sweep_context(sweep):
        plan = SweepRunner(sweep)
        while (trial := plan.next()) is not None:
            plan.tell(make_trial(sweep, trial, watch=watch))
        run = sweep.waiting(plan.best.runs[0]) if plan.best else None
        if run is not None:
            with working_on_run(run):
                decide_and_commit(run)
        return plan.result()
