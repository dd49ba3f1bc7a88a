"""Report: one page that a person looks at."""

from prefect import task

from nnbuild import pipeline
from nnbuild.pipeline.reporting import write_report
from nnbuild.store import Run
from nnbuild.store.step_results import Calibrated, Decided, LoadedData, Reported
from tasks.prefect_side import STEP, logger, outward, run_name, show_picture


@task(name="report", task_run_name=run_name("report on {data.name}"), **STEP)
def report(run: Run, data: LoadedData, calibrated: Calibrated, decided: Decided) -> Reported:  # noqa: ARG001  (it waits)
    """Write the report of a run; see `nnbuild.pipeline.reporting.write_report`."""
    reported = write_report(run, data)
    logger().info("report.html is written")
    with outward("the pictures of the report"):
        _show_pictures(run, data)
    return reported


def _show_pictures(run: Run, data: LoadedData) -> None:
    for metric in ("loss", "accuracy"):
        if (curve := pipeline.curve_picture(run, metric)) is not None:
            told = f"{metric.capitalize()} by epoch; the ring is the best, the dashes the kept one"
            show_picture(f"nnbuild-{metric}", curve, told)
    confusion = pipeline.confusion_picture(run, data)
    show_picture("nnbuild-confusion", confusion, "Confusion matrix on the test images")
