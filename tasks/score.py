"""Score: softmax over logits, into the probability table."""

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import FittedModel, LoadedData, Scored
from tasks.prefect_side import STEP, logger


@task(name="score", task_run_name="score {data.test} images", **STEP)
def score(run: Run, data: LoadedData, fitted: FittedModel) -> Scored:
    """Score the test images of a run; see `nnbuild.pipeline.score_test_set`."""
    scored = pipeline.score_test_set(run, data, fitted)
    logger().info("%d rows of probabilities in %.2f s", scored.rows, scored.seconds)
    return scored
