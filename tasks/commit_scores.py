"""Commit the scores: every shard at once, the row that makes the job exist last."""

from prefect import task

from nnbuild.scoring import ScoredJob
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.shards import Shard
from nnbuild.scoring.whole import OpenedJob
from tasks.prefect_side import STEP, logger, show_table
from tasks.telling import tell_of_drift


@task(name="commit scores", task_run_name="commit {opened.score_id}", **STEP)
def commit_scores(opened: OpenedJob, shards: list[Shard]) -> ScoredJob:
    """Commit a scoring job; see `nnbuild.scoring.commit.commit_job`."""
    scored = commit_job(opened.job(), shards)
    show_table(
        "nnbuild-scores", [scored.model_dump(exclude={"drift"})], f"Scoring job {scored.score_id}"
    )
    logger().info(
        "%d rows scored, %d quarantined, in %s", scored.rows, scored.quarantined, scored.output
    )
    tell_of_drift(opened.root, scored.score_id, scored.run_id, scored.rows, scored.drift)
    return scored
