"""Score: softmax over logits, shard by shard, with a progress bar in the UI."""

import time
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from nnbuild.scoring.shards import Shard
from nnbuild.scoring.whole import OpenedJob, make_shards
from tasks.prefect_side import STEP, logger, within_a_run

_SECONDS_BETWEEN_UPDATES = 2.0
_SECONDS_BETWEEN_LINES = 10.0


class _Watch:
    """Passes on how far the job is: to the server's database and to the log only so often."""

    def __init__(self) -> None:
        self._updated_at = self._logged_at = time.monotonic()
        self._progress: Any = None

    def scored(self, done: int, total: int, seconds: float) -> None:
        now, rate = time.monotonic(), done / max(seconds, 1e-9)
        if done == total or now - self._logged_at > _SECONDS_BETWEEN_LINES:
            self._logged_at = now
            logger().info(
                "%d of %d rows, %.0f rows/s, %.0f s left", done, total, rate, (total - done) / max(rate, 1e-9)
            )
        if within_a_run() and (done == total or now - self._updated_at > _SECONDS_BETWEEN_UPDATES):
            self._updated_at = now
            self._update(100 * done / max(total, 1))

    def _update(self, percent: float) -> None:
        if self._progress is None:
            self._progress = create_progress_artifact(
                percent, key="nnbuild-scoring", description="Rows that are scored"
            )
        else:
            update_progress_artifact(self._progress, percent)


@task(name="score shards", task_run_name="score {opened.rows} rows", retries=0, **STEP)
def score_shards(opened: OpenedJob, address: str | None) -> list[Shard]:
    """Make the shards that are not there yet; see `nnbuild.scoring.whole.make_shards`.

    Call it directly: through `.submit()` it would sit in a thread, where no signal reaches it.
    """
    return make_shards(opened.job(), address, _Watch())
