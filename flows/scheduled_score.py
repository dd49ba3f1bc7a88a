"""Scheduled scoring: what the model has scored is skipped, stopped jobs are resumed."""

from datetime import date, datetime, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import AfterValidator, Field

from flows.hooks import on_bad_scores
from flows.overtaking import SKIPPED, adopt, origin
from flows.scheduled import CHANGED, WITHDRAWN
from flows.schedules import require_timezone, timezones
from flows.score import score
from nnbuild.errors import AlreadyScoredError, BeingScoredError, ConfigError
from nnbuild.runtime import environment
from nnbuild.runtime.signals import hard_timeout
from nnbuild.runtime.text import sanitize
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.opening import scored_before
from nnbuild.scoring.partitions import is_dated
from nnbuild.store import Store
from tasks.prefect_side import logger
from tasks.score_days import score_days


def _known(name: str) -> str:
    try:
        return require_timezone(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error


Timezone = Annotated[
    str, AfterValidator(_known), Field(json_schema_extra={"enum": sorted(timezones())})
]


def _name() -> str:
    return _name_of(flow_run.parameters)


def _name_of(parameters: dict[str, Any]) -> str:
    config = ScoreConfig.model_validate(parameters["config"])
    return sanitize(f"score-{config.model}-{flow_run.scheduled_start_time:%Y%m%dT%H%M}")


@flow(
    name="scheduled-score",
    version=environment.code_version(),
    flow_run_name=_name,
    on_failure=[on_bad_scores],
    on_crashed=[on_bad_scores],
    on_cancellation=[on_bad_scores],
)
def scheduled_score(
    config: ScoreConfig,
    store: str | None = None,
    days: Annotated[int, Field(ge=1, le=366)] = 7,
    timezone: Timezone = "UTC",
    timeout_seconds: Annotated[float, Field(ge=1)] | None = None,
) -> Any:
    """Score on a schedule, with the champion of the day.

    Args:
        config: What is scored and how; `{date}` in its input stands for each of the last days that
            is not scored yet.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        days: Number of days, of which the day on which the run was due is the last.
        timezone: Timezone that tells which day that is, for a run that no schedule has planned; one
            that a schedule has planned takes the schedule's.
        timeout_seconds: Seconds after which the run is asked to stop; half a minute later it is
            killed. No limit if not given.
    """
    due = origin()
    if due.withdrawn:
        return Completed(name=SKIPPED, message=WITHDRAWN)
    if due.parameters is None:
        return _score_due(config, store, days, due.timezone or timezone, timeout_seconds)
    logger().warning(CHANGED)
    adopt(due.parameters, _name_of(due.parameters))
    current = scheduled_score.validate_parameters(due.parameters)
    return _score_due(**current | {"timezone": due.timezone})


def _score_due(
    config: ScoreConfig,
    store: str | None = None,
    days: int = 7,
    timezone: str = "UTC",
    timeout_seconds: float | None = None,
) -> Any:
    """Score what is new; the parameters are those of the flow."""
    with hard_timeout(timeout_seconds):
        if is_dated(config.input):
            last = day_of(flow_run.scheduled_start_time, timezone)
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


def day_of(moment: datetime, timezone: str) -> date:
    """Return the day that a moment is on in a timezone.

    Args:
        moment: Aware time.
        timezone: IANA name.
    """
    return moment.astimezone(ZoneInfo(timezone)).date()
