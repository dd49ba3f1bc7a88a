"""What a scoring job's rows look like, held against the reference of the run whose model scored them."""

from collections.abc import Sequence
from datetime import datetime
from functools import reduce
from operator import add
from typing import Any

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import DataError
from nnbuild.evaluation.drift import Drift, Summary, compare
from nnbuild.scoring.jobs import Job
from nnbuild.scoring.shards import Shard

_FEWEST = 16  # images whose mean brightness says something about their scale


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


def require_brightness(job: Job, shards: Sequence[Shard]) -> None:
    """Refuse rows that are darker or brighter than any content explains: their scale is another one.

    Args:
        job: Whose `max_brightness_ratio` is the limit.
        shards: All of them, finished.

    Raises:
        DataError: The mean brightness is too far from that of the model's reference.
    """
    reference = job.model.reference.get("plain")
    counts = [Summary.from_json(each.summary) for each in shards if each.rows]
    if reference is None or not counts:
        return
    scored = reduce(add, counts)
    if scored.brightness.sum() < _FEWEST or not reference.brightness.sum():
        return  # a few images may all be dark
    expected, found = reference.mean_brightness(), scored.mean_brightness()
    ratio = max(expected, found) / min(expected, found)
    if ratio > job.config.max_brightness_ratio:
        raise DataError(
            f"{job.config.input}: mean brightness {found:.2f} of 255, the model was validated on "
            f"{expected:.2f}: a factor of {ratio:.0f}, expected at most "
            f"{job.config.max_brightness_ratio:g}; give the pixels on their usual scale, "
            "or --pixel-max, or raise --max-brightness-ratio"
        )


def drift_rows(job: Job, found: Compared, now: datetime) -> list[dict[str, Any]]:
    """The rows of the `drift` table."""
    return [
        {"run_id": job.model.run_id, **each.model_dump(), "measured_at": now}
        for each in found.measures
    ]
