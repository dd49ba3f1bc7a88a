"""Commit the scores: every shard at once, the row that makes the job exist last."""

from prefect import task

from nnbuild.scoring import ScoredJob
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.shards import Shard
from nnbuild.scoring.whole import OpenedJob
from tasks.prefect_side import STEP, logger, show_table
from tasks.telling import DRIFTED, announce, notify


@task(name="commit scores", task_run_name="commit {opened.score_id}", **STEP)
def commit_scores(opened: OpenedJob, shards: list[Shard]) -> ScoredJob:
    """Commit a scoring job; see `nnbuild.scoring.commit.commit_job`."""
    scored = commit_job(opened.job(), shards)
    show_table("nnbuild-scores", [scored.model_dump(exclude={"drift"})], f"Scoring job {scored.score_id}")
    logger().info("%d rows scored, %d quarantined, in %s", scored.rows, scored.quarantined, scored.output)
    _tell_of_drift(scored)
    return scored


def _tell_of_drift(scored: ScoredJob) -> None:
    drift = scored.drift
    if not drift.measures:
        logger().info("drift %s", drift.remark)
        return
    named = ", ".join(drift.exceeded)
    told = f"Drift of scoring job {scored.score_id}: {named or 'no threshold passed'}"
    show_table("nnbuild-drift", [each.model_dump() for each in drift.measures], told)
    if not drift.exceeded:
        return
    logger().warning("%s drifted from what the model was validated on", named)
    figures = {f"{each.measure}_{each.statistic}": each.value for each in drift.measures}
    run_id = str(scored.run_id)
    announce(DRIFTED, run_id, {"score_id": scored.score_id, "exceeded": named, "rows": scored.rows, **figures})
    notify(told, event=DRIFTED, run_id=run_id, score_id=scored.score_id, **figures)
