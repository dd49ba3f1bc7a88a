"""Scheduled retraining: superseded runs are skipped, stopped ones resumed, hanging ones ended."""

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import AfterValidator, Field

from flows.hooks import on_bad_end, on_bad_scores, record_cancellation
from flows.retrain import retrain
from flows.schedules import require_timezone, timezones
from flows.score import score
from nnbuild.config.schema import RunConfig, ScheduledConfig
from nnbuild.errors import AlreadyScoredError, BeingScoredError, ConfigError
from nnbuild.pipeline.run import resumable
from nnbuild.runtime import environment
from nnbuild.runtime.signals import hard_timeout
from nnbuild.runtime.text import sanitize
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.days import is_dated
from nnbuild.scoring.job import scored_before
from nnbuild.store import Run, Store
from tasks.artifacts import logger
from tasks.score import score_days

SKIPPED = "Skipped"
_MADE = [
    "RUNNING",
    "COMPLETED",
    "FAILED",
]  # one that was cancelled or killed is not: the next goes on with it


class Origin(NamedTuple):
    """Where the current run comes from, and what its deployment says today.

    Attributes:
        withdrawn: Whether the schedule that planned the run is no longer there.
        parameters: Parameters that the deployment has for that schedule today, if the run has
            others; else None.
        timezone: Timezone of the schedule; None for a run that no schedule planned.
    """

    withdrawn: bool = False
    parameters: dict[str, Any] | None = None
    timezone: str | None = None


def origin() -> Origin:
    """Compare the current run with its deployment.

    A run that a person or an automation has started keeps its parameters: they were meant for it.
    """
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        if run.deployment_id is None or not run.auto_scheduled:
            return Origin()
        try:
            deployment = client.read_deployment(run.deployment_id)
        except ObjectNotFound:
            return Origin(withdrawn=True)
    schedule = _schedule_of(run, deployment.schedules)
    if schedule is None:
        return Origin(withdrawn=True)
    current = {**deployment.parameters, **schedule.parameters}
    return Origin(
        parameters=None if current == run.parameters else current,
        timezone=getattr(schedule.schedule, "timezone", None) or "UTC",
    )


def _schedule_of(run: Any, schedules: list[Any]) -> Any | None:
    """Return the schedule that planned a run.

    Registering a deployment again gives its schedules new ids; then the name counts that the run
    shows as its creator's. A schedule without a slug goes by the name of its class.
    """
    if run.created_by is None:
        return None
    same = [each for each in schedules if each.id == run.created_by.id]
    named = [
        each
        for each in schedules
        if (each.slug or type(each.schedule).__name__) == run.created_by.display_value
    ]
    if same:
        return same[0]
    return named[0] if len(named) == 1 else None


def adopt(parameters: Mapping[str, Any], name: str) -> None:
    """Give the current run other parameters, and the name that fits them, on the server."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, parameters=dict(parameters), name=name)


def overtaken_at() -> datetime | None:
    """When the run began that does what this one is for; None if there is none, and this one has to be made.

    After a downtime the first of the missed runs is made and the others are skipped. And however slow runs are to
    start, one is always made: a run is skipped for one that has begun, never for one that is only due.
    """
    with get_client(sync_client=True) as client:
        mine = client.read_flow_run(flow_run.id)
        if mine.deployment_id is None or mine.expected_start_time is None:
            return None
        wanted = {
            "deployment_id": {"any_": [mine.deployment_id]},
            "state": {"type": {"any_": _MADE}},
            "start_time": {"after_": mine.expected_start_time},
        }
        begun = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(wanted),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    others = (each for each in begun if each.id != mine.id and each.state_name != SKIPPED)
    times = [each.start_time for each in others if _settings(each) == _settings(mine)]
    return max((time for time in times if time is not None), default=None)


def _settings(run: Any) -> tuple[Any, Any]:
    return run.parameters.get("config"), run.parameters.get("store")


WITHDRAWN = "The schedule that planned this run is no longer part of the deployment."
CHANGED = "The settings of the deployment were changed since this run was planned; it takes them."


def _name() -> str:
    return _name_of(flow_run.parameters)


def _name_of(parameters: dict[str, Any]) -> str:
    config = RunConfig.model_validate(parameters.get("config") or {})
    dataset = Path(config.dataset.name).stem
    name = f"{config.model.name}-{dataset}-{flow_run.scheduled_start_time:%Y%m%dT%H%M}"
    return sanitize(name)


@flow(
    name="scheduled-retrain",
    version=environment.code_version(),
    flow_run_name=_name,
    on_failure=[on_bad_end],
    on_crashed=[on_bad_end],
    on_cancellation=[record_cancellation, on_bad_end],
)
def scheduled_retrain(
    config: ScheduledConfig = ScheduledConfig(),  # noqa: B008  (frozen)
    store: str | None = None,
    timeout_seconds: Annotated[float, Field(ge=1)] | None = None,
    overtaken: Literal["skip", "run"] = "skip",
) -> Any:
    """Retrain on a schedule.

    Args:
        config: Settings of the run; it never falls back to other data.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        timeout_seconds: Seconds after which the run is asked to stop with a checkpoint; half a
            minute later it is killed. No limit if not given.
        overtaken: Fate of a late run if another one of the same settings has begun since it was
            due.
    """
    due = origin()
    if due.withdrawn:
        return Completed(name=SKIPPED, message=WITHDRAWN)
    if due.parameters is not None:
        logger().warning(CHANGED)
        adopt(due.parameters, _name_of(due.parameters))
        return _retrain_due(**scheduled_retrain.validate_parameters(due.parameters))
    return _retrain_due(config, store, timeout_seconds, overtaken)


def _retrain_due(
    config: ScheduledConfig = ScheduledConfig(),  # noqa: B008  (frozen)
    store: str | None = None,
    timeout_seconds: float | None = None,
    overtaken: str = "skip",
) -> Any:
    """Retrain with the flow's parameters, unless another run has begun that does the same."""
    settings = config.run_config()
    if overtaken == "skip" and (begun := overtaken_at()):
        message = (
            "Overtaken: a run of the same settings has begun since this one was due, "
            f"at {begun:%Y-%m-%d %H:%M:%S} UTC."
        )
        return Completed(name=SKIPPED, message=message)
    with hard_timeout(timeout_seconds):
        return retrain.fn(settings, store, resume=waiting(Store(store), settings))


def waiting(store: Store, config: RunConfig) -> str | None:
    """Return the id of the newest stopped run that a scheduled run resumes, if there is one.

    A run that a person has cancelled waits for a person. If this flow run was tried before and left
    a run that is not resumed, that run waits too, and is no longer this flow run's.
    """
    mine = str(flow_run.id) if flow_run.id else None

    def refused(run: Run) -> str | None:
        own = mine is not None and run.record.get("flow_run_id") == mine
        return None if own or not _was_cancelled(run) else "a person has cancelled it"

    run, remarks = resumable(store, config, refused)
    for remark in remarks:
        logger().info("%s", remark)
    before = store.run_of_flow(mine) if mine is not None else None
    if before is not None and (run is None or before.run_id != run.run_id):
        before.release()
    return run.run_id if run is not None else None


def _was_cancelled(run: Run) -> bool:
    """Say whether a person has cancelled a run, by its own record or by the server's.

    The record can lack it where no process was left to write it, the server where its database was
    lost.
    """
    flow_run_id = run.record.get("flow_run_id")
    if run.was_cancelled or flow_run_id is None:
        return run.was_cancelled
    with get_client(sync_client=True) as client:
        try:
            states = client.read_flow_run_states(flow_run_id)
        except ObjectNotFound:
            return False
    return any(each.is_cancelling() or each.is_cancelled() for each in states)


def _known(name: str) -> str:
    try:
        return require_timezone(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error


Timezone = Annotated[
    str, AfterValidator(_known), Field(json_schema_extra={"enum": sorted(timezones())})
]


def _scoring_run_name() -> str:
    return _scoring_run_name_of(flow_run.parameters)


def _scoring_run_name_of(parameters: dict[str, Any]) -> str:
    config = ScoreConfig.model_validate(parameters["config"])
    return sanitize(f"score-{config.model}-{flow_run.scheduled_start_time:%Y%m%dT%H%M}")


@flow(
    name="scheduled-score",
    version=environment.code_version(),
    flow_run_name=_scoring_run_name,
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
    adopt(due.parameters, _scoring_run_name_of(due.parameters))
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
