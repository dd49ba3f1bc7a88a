"""Tasks of the scoring flows, in their order: open, score, commit; or score a range of days."""

from datetime import date

from prefect import task

from nnbuild.errors import RunError
from nnbuild.scoring import ScoreConfig, ScoredJob, backfill
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.days import DayResult
from nnbuild.scoring.scorer import JobHandle, make_shards, open_or_resume
from nnbuild.scoring.shards import Shard
from nnbuild.store import Store
from tasks.artifacts import TASK_DEFAULTS, retry_after, scoring_key, show_table
from tasks.displays import logger, outward
from tasks.events import report_drift
from tasks.progress import ProgressBar, ProgressReporter


@task(name="open scoring", task_run_name="open scoring", **retry_after(1, 10))
def open_scoring(
    config: ScoreConfig | None, store: str | None, resume: str | None, *, once: bool
) -> JobHandle:
    """Create or resume a scoring job; verify its model and its input.

    See `nnbuild.scoring.scorer.open_or_resume`.
    """
    job = open_or_resume(config, store, resume, once=once)
    logger().info("scoring job %s: %d rows", job.score_id, job.rows)
    return job


@task(name="score shards", task_run_name="score {job.rows} rows", retries=0, **TASK_DEFAULTS)
def score_shards(job: JobHandle, address: str | None) -> list[Shard]:
    """Score the pending shards of a job; see `nnbuild.scoring.scorer.make_shards`.

    Call it directly: `.submit()` would run it in a thread, which receives no signals.
    """
    opened = job.open()
    key = scoring_key("nnbuild-scoring", job.root, opened.model.run_id)
    return make_shards(opened, address, ProgressReporter(ProgressBar(key, "Scored rows")))


@task(name="commit scores", task_run_name="commit {job.score_id}", **TASK_DEFAULTS)
def commit_scores(job: JobHandle, shards: list[Shard]) -> ScoredJob:
    """Commit a scoring job and report its drift; see `nnbuild.scoring.commit.commit_job`."""
    scored = commit_job(job.open(), shards)
    row = scored.model_dump(exclude={"drift"})
    with outward("artifact nnbuild-scores"):
        key = scoring_key("nnbuild-scores", job.root, scored.run_id)
        show_table(key, [row], f"Scoring job {scored.score_id}")
    logger().info(
        "%d rows scored, %d quarantined, in %s", scored.rows, scored.quarantined, scored.output
    )
    report_drift(job.root, scored.score_id, scored.run_id, scored.rows, scored.drift)
    return scored


@task(name="score days", task_run_name="score {first} to {last}", **TASK_DEFAULTS)
def score_days(config: ScoreConfig, first: date, last: date, store: str | None) -> list[DayResult]:
    """Score the days of a range; see `nnbuild.scoring.backfill`.

    Call it directly: `.submit()` would run it in a thread, which receives no signals.

    Raises:
        RunError: At least one day could not be scored.
    """
    root = str(Store(store).root)

    def report(day: DayResult) -> None:
        logger().info("%s %s %s", day.day, day.status, day.remark or day.score_id)
        if day.status == "scored":
            report_drift(root, str(day.score_id), day.run_id, day.rows, day.drift)

    days = backfill(config, first, last, root, on_day_done=report)
    rows = [each.model_dump(mode="json", exclude={"drift"}) for each in days]
    with outward("artifact nnbuild-days"):
        run_id = next((each.run_id for each in days if each.run_id), None)
        key = scoring_key("nnbuild-days", root, run_id)
        show_table(key, rows, f"{config.input} from {first} to {last}")
    if failed := [str(each.day) for each in days if each.status == "failed"]:
        raise RunError(
            f"{', '.join(failed)} could not be scored; see the log, fix the cause and run again"
        )
    return days
