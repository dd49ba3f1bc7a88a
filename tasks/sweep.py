"""Task of a sweep: one trial."""

from prefect import task

from nnbuild import sweep as sweeps
from nnbuild.sweep import Sweep, Trial, TrialResult
from tasks.artifacts import TASK_DEFAULTS
from tasks.displays import logger, show_note
from tasks.progress import ProgressReporter


@task(name="trial", task_run_name="trial {trial.number}", retries=0, **TASK_DEFAULTS)
def make_trial(sweep: Sweep, trial: Trial) -> TrialResult:
    """Train the runs of a trial, one for each seed; see `nnbuild.sweep.make_trial`.

    A failed trial is a result too. Call the task directly if it should receive signals, or submit
    it to workers of a cluster that have one thread each.
    """
    values = ", ".join(f"{key}={value}" for key, value in trial.values.items())
    title = f"trial {trial.number}: {values}"
    result = sweeps.make_trial(sweep, trial, progress=ProgressReporter(heading=title))
    outcome = result.error
    if result.value is not None:
        outcome = f"{sweep.config.objective} {result.value:.4g}"
    logger().info("%s: %s, %s", title, result.state, outcome)
    show_note(f"trial {trial.number} {result.state}: {outcome}")
    return result
