"""Calibrate: the temperature at which confidence means accuracy."""

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import Calibrated, FittedModel, LoadedData
from tasks.prefect_side import STEP, logger, run_name


@task(name="calibrate", task_run_name=run_name("calibrate {run.config.model.name}"), **STEP)
def calibrate(run: Run, data: LoadedData, fitted: FittedModel) -> Calibrated:
    """Calibrate the network of a run; see `nnbuild.pipeline.calibrate_model`."""
    calibrated = pipeline.calibrate_model(run, data, fitted)
    logger().info(
        "temperature %.3f, expected calibration error on the test images %.4f, before %.4f",
        calibrated.temperature,
        calibrated.after["test"],
        calibrated.before["test"],
    )
    return calibrated
