"""Open a scoring job: its model and its input are found and verified."""

from prefect import task

from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.whole import OpenedJob, opened
from tasks.prefect_side import STEP, can_be_retried, logger


@task(
    name="open scoring",
    task_run_name="open scoring",
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=can_be_retried,
    **STEP,
)
def open_scoring(
    config: ScoreConfig | None, store: str | None, resume: str | None, *, once: bool
) -> OpenedJob:
    """Begin a job, or resume one; see `nnbuild.scoring.whole.opened`."""
    found = opened(config, store, resume, once=once)
    logger().info("scoring job %s: %d rows", found.score_id, found.rows)
    return found
