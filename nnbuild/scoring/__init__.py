"""Batch scoring: from images to logits to the probability table, for inputs of any size.

    job.py ───────── shards.py ─── commit.py
    (open, resume)   (score)       (publish)

`scorer.score` runs one job, `days.backfill` one job for each day of a range. `job_context.py` locks
a job meanwhile. Its shards are made in this process (`job_shards.py`), in processes that share the
cores (`processes.py`), or on a cluster (`dask.py`); the bytes are the same. `batch.py` scores a
batch, `row_writer.py` writes it.
"""

from typing import TYPE_CHECKING, Any

from nnbuild.scoring.table import batches, logits_of, probability_table, write_predictions

if TYPE_CHECKING:
    from nnbuild.scoring.commit import ScoredJob
    from nnbuild.scoring.config import ScoreConfig
    from nnbuild.scoring.days import backfill
    from nnbuild.scoring.scorer import score

__all__ = [
    "ScoreConfig",
    "ScoredJob",
    "backfill",
    "batches",
    "logits_of",
    "probability_table",
    "score",
    "write_predictions",
]


def __getattr__(name: str) -> Any:
    from nnbuild.runtime.lazy_imports import attach

    places = {
        "nnbuild.scoring.days": ("backfill",),
        "nnbuild.scoring.config": ("ScoreConfig",),
        "nnbuild.scoring.commit": ("ScoredJob",),
        "nnbuild.scoring.scorer": ("score",),
    }
    return attach(name, places, __name__)
