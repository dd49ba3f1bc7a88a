"""A trial of a sweep: its runs, one for each seed."""

from prefect import task

from nnbuild import sweep as sweeping
from nnbuild.runtime.progress import NullProgress
from nnbuild.sweep import Sweep, Trial, TrialResult
from tasks.artifacts import STEP, logger
from tasks.progress import displays


class _Watch(NullProgress):
    """Passes on what the fits say to whoever looks, behind a line that says which trial it is."""

    def __init__(self, told: str) -> None:
        self._untold: list[str] = [told]

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        while self._untold:
            line = self._untold.pop()
            for display in displays():
                display.note(line)
        for display in displays():
            display.step(epoch, epochs, done, steps, metrics)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        for display in displays():
            display.epoch(epoch, epochs, metrics, seconds)


@task(name="trial", task_run_name="trial {trial.number}", retries=0, **STEP)
def make_trial(sweep: Sweep, trial: Trial) -> TrialResult:
    """Make the runs of a trial; see `nnbuild.sweep.make_trial`. A trial that fails is a result too.

    Call it directly where signals are to be heard; submit it to a cluster's workers, of one thread each.
    """
    told = f"trial {trial.number}: " + ", ".join(
        f"{key}={value}" for key, value in trial.values.items()
    )
    result = sweeping.make_trial(sweep, trial, progress=_Watch(told))
    came = (
        f"{sweep.config.objective} {result.value:.4g}" if result.value is not None else result.error
    )
    logger().info("%s: %s, %s", told, result.state, came)
    for display in displays():
        display.note(f"trial {trial.number} {result.state}: {came}")
    return result
