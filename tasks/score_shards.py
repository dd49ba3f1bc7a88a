"""Score: softmax over logits, shard by shard, with a progress bar in the UI."""

import time
from functools import partial

from prefect import task

from nnbuild.scoring.shards import Shard
from nnbuild.scoring.whole import OpenedJob, make_shards
from tasks.aside import Aside, ProgressBar
from tasks.prefect_side import STEP, logger

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
def score_shards(opened: OpenedJob, address: str | None) -> list[Shard]:
    """Make the shards that are not there yet; see `nnbuild.scoring.whole.make_shards`.

    Call it directly: through `.submit()` it would sit in a thread, where no signal reaches it.
    """
    return make_shards(opened.job(), address, _Watch())
