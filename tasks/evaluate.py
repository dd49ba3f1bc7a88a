"""Evaluate: how good is it on examples that no choice was made on?"""

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import Evaluated, FittedModel, LoadedData
from tasks.prefect_side import STEP, logger, run_name, show_table


@task(name="evaluate", task_run_name=run_name("evaluate on {data.name}"), **STEP)
def evaluate(run: Run, data: LoadedData, fitted: FittedModel) -> Evaluated:
    """Evaluate the network of a run; see `nnbuild.pipeline.evaluate_model`."""
    evaluated = pipeline.evaluate_model(run, data, fitted)
    rows = [{"metric": name, "value": value} for name, value in evaluated.metrics.items()]
    show_table("nnbuild-metrics", rows, f"Metrics on the test images of {data.name}")
    logger().info(
        "test accuracy %.4f, test loss %.4f", evaluated.test_accuracy, evaluated.test_loss
    )
    return evaluated
