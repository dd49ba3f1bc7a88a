"""Open a scoring job: its model and its input are found and verified."""

import time
from datetime import date
from functools import partial

from prefect import task

from nnbuild.errors import RunError
from nnbuild.scoring import ScoreConfig, ScoredJob, backfill
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.days import DayResult
from nnbuild.scoring.scorer import JobHandle, make_shards, open_or_resume
from nnbuild.scoring.shards import Shard
from nnbuild.store import Store
from tasks.artifacts import STEP, can_be_retried, logger, show_table
from tasks.events import tell_of_drift
from tasks.progress import Aside, ProgressBar


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
) -> JobHandle:
    """Begin a job, or resume one; see `nnbuild.scoring.scorer.open_or_resume`."""
    found = open_or_resume(config, store, resume, once=once)
    logger().info("scoring job %s: %d rows", found.score_id, found.rows)
    return found


@task(name="commit scores", task_run_name="commit {opened.score_id}", **STEP)
def commit_scores(opened: JobHandle, shards: list[Shard]) -> ScoredJob:
    """Commit a scoring job; see `nnbuild.scoring.commit.commit_job`."""
    scored = commit_job(opened.open(), shards)
    show_table(
        "nnbuild-scores", [scored.model_dump(exclude={"drift"})], f"Scoring job {scored.score_id}"
    )
    logger().info(
        "%d rows scored, %d quarantined, in %s", scored.rows, scored.quarantined, scored.output
    )
    tell_of_drift(opened.root, scored.score_id, scored.run_id, scored.rows, scored.drift)
    return scored


@task(name="score days", task_run_name="score {first} to {last}", **STEP)
def score_days(config: ScoreConfig, first: date, last: date, store: str | None) -> list[DayResult]:
    """Score the days of a range; see `nnbuild.scoring.backfill`. Call it directly, so that signals reach it."""
    root = str(Store(store).root)

    def told(part: DayResult) -> None:
        logger().info("%s %s %s", part.day, part.status, part.remark or part.score_id)
        if part.status == "scored":
            tell_of_drift(root, str(part.score_id), part.run_id, part.rows, part.drift)

    parts = backfill(config, first, last, root, on_day_done=told)
    rows = [each.model_dump(mode="json", exclude={"drift"}) for each in parts]
    show_table("nnbuild-days", rows, f"{config.input} from {first} to {last}")
    if failed := [str(each.day) for each in parts if each.status == "failed"]:
        raise RunError(
            f"{', '.join(failed)} could not be scored; see the log, mend them, and run again"
        )
    return parts


_SECONDS_BETWEEN_UPDATES = 2.0
_SECONDS_BETWEEN_LINES = 10.0


class _Watch:
    """Passes on how far the job is: to the server's database and to the log only so often."""

    def __init__(self) -> None:
        self._updated_at = self._logged_at = time.monotonic()
        self._bar = ProgressBar("nnbuild-scoring", "Rows that are scored")
        self._aside = Aside()

    def scored(self, done: int, total: int, seconds: float) -> None:
        now, rate = time.monotonic(), done / max(seconds, 1e-9)
        if done == total or now - self._logged_at > _SECONDS_BETWEEN_LINES:
            self._logged_at = now
            logger().info(
                "%d of %d rows, %.0f rows/s, %.0f s left",
                done,
                total,
                rate,
                (total - done) / max(rate, 1e-9),
            )
        if done == total:
            self._aside.conclude(partial(self._bar.show, 100.0))
        elif now - self._updated_at > _SECONDS_BETWEEN_UPDATES:
            self._updated_at = now
            self._aside.say(partial(self._bar.show, 100 * done / total))


@task(name="score shards", task_run_name="score {opened.rows} rows", retries=0, **STEP)
def score_shards(opened: JobHandle, address: str | None) -> list[Shard]:
    """Make the shards that are not there yet; see `nnbuild.scoring.scorer.make_shards`.

    Call it directly: through `.submit()` it would sit in a thread, where no signal reaches it.
    """
    return make_shards(opened.open(), address, _Watch())
