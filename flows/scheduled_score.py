"""Scoring that nobody watches: what this model has scored already is left, what waits is taken up."""

from datetime import timedelta
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.hooks import on_bad_scores
from flows.overtaking import SKIPPED
from flows.score import score
from nnbuild import machine
from nnbuild.errors import AlreadyScoredError, BeingScoredError
from nnbuild.runtime.text import sanitize
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.opening import scored_before
from nnbuild.scoring.partitions import is_dated
from nnbuild.store import Store
from nnbuild.watchdog import ended_after
from tasks.score_days import score_days


def _name() -> str:
    config = ScoreConfig.model_validate(flow_run.parameters["config"])
    return sanitize(f"score-{config.model}-{flow_run.scheduled_start_time:%Y%m%dT%H%M}")


@flow(
    name="scheduled-score",
    version=machine.code_version(),
    flow_run_name=_name,
    on_failure=[on_bad_scores],
    on_crashed=[on_bad_scores],
    on_cancellation=[on_bad_scores],
)
def scheduled_score(
    config: ScoreConfig,
    store: str | None = None,
    days: int = 7,
    timeout_seconds: float | None = None,
) -> Any:
    """Score on a schedule, with the champion of the day.

    Args:
        config: what is scored and how; with `{date}` in its input, the last days are, those that were not yet.
        store: its root; $NNBUILD_STORE or ./nnbuild-store if not given.
        days: how many, with the day that the run was due (UTC) as the last.
        timeout_seconds: after so many the run is asked to stop, and killed half a minute later.
    """
    with ended_after(timeout_seconds):
        if is_dated(config.input):
            last = flow_run.scheduled_start_time.date()
            return score_days(config, last - timedelta(days=days - 1), last, store)
        if (before := scored_before(Store(store), config)) is not None:
            return Completed(
                name=SKIPPED,
                message=f"Scoring job {before} has scored this input by this model already.",
            )
        try:
            return score.fn(config, store, once=True)
        except (BeingScoredError, AlreadyScoredError) as error:
            return Completed(name=SKIPPED, message=str(error))
