"""What a scoring job's rows look like, held against the reference of the run whose model scored them."""

from collections.abc import Sequence
from datetime import datetime
from functools import reduce
from operator import add
from typing import Any

from pydantic import BaseModel, ConfigDict

from nnbuild.drift import Drift, Summary, compare
from nnbuild.scoring.jobs import Job
from nnbuild.scoring.shards import Shard


class Compared(BaseModel):
    """What came of the comparison.

    Attributes:
        measures: both statistics of each measure; empty if nothing could be compared.
        exceeded: names of the measures of which one statistic passed its threshold.
        remark: why nothing could be compared; empty if it was.
    """

    model_config = ConfigDict(frozen=True)
    measures: tuple[Drift, ...] = ()
    exceeded: tuple[str, ...] = ()
    remark: str = ""


def compared(job: Job, shards: Sequence[Shard]) -> Compared:
    """Hold what was scored against the reference; the same whenever it is asked, since each shard keeps its counts.

    Args:
        job: that the shards are of.
        shards: all of them, finished.
    """
    reference = job.model.reference.get("calibrated" if job.config.calibrated else "plain")
    if reference is None:
        what = (
            f"run {job.model.run_id} is of before references were kept"
            if job.model.run_id
            else "a file has none"
        )
        return Compared(remark=f"not measured, for want of a reference: {what}")
    counts = [each.summary for each in shards if each.rows]
    if not counts:
        return Compared(remark="not measured: no row was scored")
    scored = reduce(add, (Summary.from_json(each) for each in counts))
    measures = compare(reference, scored, psi=job.config.drift_psi, ks=job.config.drift_ks)
    exceeded = dict.fromkeys(each.measure for each in measures if each.exceeded)
    return Compared(measures=tuple(measures), exceeded=tuple(exceeded))


def drift_rows(job: Job, found: Compared, now: datetime) -> list[dict[str, Any]]:
    """The rows of the `drift` table."""
    return [
        {"run_id": job.model.run_id, **each.model_dump(), "measured_at": now}
        for each in found.measures
    ]
