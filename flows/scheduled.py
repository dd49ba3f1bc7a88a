"""Retrain, score, label and prune on a schedule.

A process may start a run late, after the deployment has changed or another run has done the same
work. So each run first compares itself with its deployment. Retraining then applies the catch-up
policy, and scoring looks up what was already scored. Labelling and pruning need no such policy:
if they are repeated, there is nothing left to do.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from prefect import State, flow, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from pydantic import AfterValidator, Field

from flows.deployment_check import (
    REMOVED,
    SKIPPED,
    as_deployed,
    check_deployment,
    skipped,
    update_flow_run,
)
from flows.flow_runs import (
    FLOW_DEFAULTS,
    scheduled_label_name,
    scheduled_prune_name,
    scheduled_retrain_name,
    scheduled_score_name,
)
from flows.hooks import LABELLING_HOOKS, PRUNING_HOOKS, RETRAINING_HOOKS, SCORING_HOOKS
from flows.retrain import retrain
from flows.schedules import require_timezone, timezones
from flows.score import score
from nnbuild.config.schema import RunConfig, ScheduledConfig
from nnbuild.errors import AlreadyScoredError, BeingScoredError, ConfigError, DataError
from nnbuild.live import Ingested, LabelConfig, LiveConfig
from nnbuild.pipeline.retention import Pruned, RetentionConfig
from nnbuild.pipeline.run import resumable
from nnbuild.pipeline.unchanged import unchanged_since
from nnbuild.runtime import environment
from nnbuild.runtime.date_patterns import is_dated
from nnbuild.runtime.signals import hard_timeout
from nnbuild.scoring import ScoreConfig, ScoredJob
from nnbuild.scoring.days import DayResult
from nnbuild.scoring.job import scored_before
from nnbuild.store import Run, Store
from nnbuild.store.step_results import Committed
from tasks.displays import logger
from tasks.label import add_labels, watch_live
from tasks.prune import prune_flow_runs, prune_store
from tasks.score import score_days

Timeout = Annotated[float, Field(ge=1)]


# Scheduled retraining


@flow(
    name="scheduled-retrain",
    version=environment.code_version(),
    flow_run_name=scheduled_retrain_name,
    **FLOW_DEFAULTS,
    **RETRAINING_HOOKS,
)
def scheduled_retrain(
    config: ScheduledConfig = ScheduledConfig(),
    store: str | None = None,
    timeout_seconds: Timeout | None = None,
    *,
    catch_up: bool = False,
    unchanged: Literal["skip", "run"] = "skip",
) -> Committed | State[Any]:
    """Retrain on a schedule, unless there is nothing new.

    Args:
        config: Run configuration; a scheduled run never falls back to another dataset.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        timeout_seconds: Time in seconds after which the run is asked to stop with a checkpoint;
            half a minute later it is killed. No limit if not given.
        catch_up: Whether to run even if another run with the same settings has started since this
            one was due.
        unchanged: Whether to skip or to run if an earlier run with the same settings and code used
            the same data, or if too few images are new (`dataset.min_new`).
    """
    given = {
        "config": config,
        "store": store,
        "timeout_seconds": timeout_seconds,
        "catch_up": catch_up,
        "unchanged": unchanged,
    }
    return as_deployed(scheduled_retrain, _retrain, given, scheduled_retrain_name)


def _retrain(
    config: ScheduledConfig,
    store: str | None,
    timeout_seconds: float | None,
    *,
    catch_up: bool,
    unchanged: str,
) -> Committed | State[Any]:
    settings = config.run_config()
    if not catch_up and (started := superseded_at()):
        return skipped(
            "Superseded: another run with the same settings has started since this one was due, "
            f"at {started:%Y-%m-%d %H:%M:%S} UTC."
        )
    with hard_timeout(timeout_seconds):
        opened = Store(store)
        resumed = run_to_resume(opened, settings)
        if resumed is None and unchanged == "skip":
            same = unchanged_since(opened, settings, datetime.now(UTC))
            if same is not None:
                return skipped(f"Nothing to do: {same.reason}.")
        return retrain.fn(settings, store, resume=resumed)


# A cancelled or crashed run supersedes nothing: the next one resumes it.
_SUPERSEDING_STATES = ["RUNNING", "PAUSED", "COMPLETED", "FAILED"]


def superseded_at() -> datetime | None:
    """Return when another run with the same settings started after this one was due, or None.

    After a downtime the first of the missed runs does the work, and the others are skipped. A run
    is superseded only by one that has started, never by one that is merely due, so that one of them
    always does the work.
    """
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(flow_run.id)
        if own.deployment_id is None or own.expected_start_time is None:
            return None
        criteria = {
            "deployment_id": {"any_": [own.deployment_id]},
            "state": {"type": {"any_": _SUPERSEDING_STATES}},
            "start_time": {"after_": own.expected_start_time},
        }
        started = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(criteria),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    others = (each for each in started if each.id != own.id and each.state_name != SKIPPED)
    times = [each.start_time for each in others if _settings(each) == _settings(own)]
    return max((time for time in times if time is not None), default=None)


def _settings(run: Any) -> tuple[Any, Any]:
    return run.parameters.get("config"), run.parameters.get("store")


def run_to_resume(store: Store, config: RunConfig) -> str | None:
    """Return the ID of the newest stopped run that a scheduled run resumes, or None.

    A run that a person has cancelled is not resumed. If an earlier attempt of this flow run left
    another run, that run is detached from this flow run.
    """
    own_id = str(flow_run.id) if flow_run.id else None

    def refusal(run: Run) -> str | None:
        is_own = own_id is not None and run.record.get("flow_run_id") == own_id
        return None if is_own or not _was_cancelled(run) else "a person has cancelled it"

    run, remarks = resumable(store, config, refusal)
    for remark in remarks:
        logger().info("%s", remark)
    earlier = store.run_of_flow(own_id) if own_id is not None else None
    if earlier is not None and (run is None or earlier.run_id != run.run_id):
        earlier.release()
    return run.run_id if run is not None else None


def _was_cancelled(run: Run) -> bool:
    """Return whether a person has cancelled a run, by its own record or by the server's.

    The run's record does not say so if no process was left to write it; the server does not know if
    its database was lost.
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


# Scheduled scoring


def _validate_timezone(name: str) -> str:
    try:
        return require_timezone(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error


Timezone = Annotated[
    str,
    AfterValidator(_validate_timezone),
    Field(json_schema_extra={"enum": sorted(timezones())}),
]


@flow(
    name="scheduled-score",
    version=environment.code_version(),
    flow_run_name=scheduled_score_name,
    **FLOW_DEFAULTS,
    **SCORING_HOOKS,
)
def scheduled_score(
    config: ScoreConfig,
    store: str | None = None,
    days: Annotated[int, Field(ge=1, le=366)] = 7,
    timezone: Timezone = "UTC",
    timeout_seconds: Timeout | None = None,
) -> ScoredJob | list[DayResult] | State[Any]:
    """Score on a schedule, with the current champion.

    Args:
        config: Scoring configuration; `{date}` in its input stands for each of the last days that
            is not scored yet.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        days: Number of days to score; the last one is the day on which the run was due.
        timezone: Timezone of that day, for a run that no schedule planned; other runs use the
            timezone of their schedule.
        timeout_seconds: Time in seconds after which the run is asked to stop; half a minute later
            it is killed. No limit if not given.
    """
    check = check_deployment()
    if check.removed:
        return skipped(REMOVED)
    if check.parameters is None:
        return _score(config, store, days, check.timezone or timezone, timeout_seconds)
    update_flow_run(check.parameters, scheduled_score_name(check.parameters))
    parameters = scheduled_score.validate_parameters(check.parameters)
    return _score(**parameters | {"timezone": check.timezone})


def _score(
    config: ScoreConfig,
    store: str | None,
    days: int,
    timezone: str,
    timeout_seconds: float | None,
) -> ScoredJob | list[DayResult] | State[Any]:
    with hard_timeout(timeout_seconds):
        if is_dated(config.input):
            last = day_of(flow_run.scheduled_start_time, timezone)
            return score_days(config, last - timedelta(days=days - 1), last, store)
        if (score_id := scored_before(Store(store), config)) is not None:
            return skipped(f"Scoring job {score_id} has scored this input with this model.")
        try:
            return score.fn(config, store, once=True)
        except (BeingScoredError, AlreadyScoredError) as error:
            return skipped(str(error))


# Scheduled labelling


@flow(
    name="scheduled-label",
    version=environment.code_version(),
    flow_run_name=scheduled_label_name,
    **FLOW_DEFAULTS,
    **LABELLING_HOOKS,
)
def scheduled_label(
    config: LabelConfig,
    live: LiveConfig = LiveConfig(),
    store: str | None = None,
    timeout_seconds: Timeout | None = None,
) -> Ingested | State[Any]:
    """Add labels on a schedule, and compute live accuracy.

    Args:
        config: Address of the labels, and names of their columns.
        live: Settings of the alarm.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        timeout_seconds: Time in seconds after which the run is asked to stop; half a minute later
            it is killed. No limit if not given.
    """
    given = {"config": config, "live": live, "store": store, "timeout_seconds": timeout_seconds}
    return as_deployed(scheduled_label, _label, given, lambda _: scheduled_label_name())


def _label(
    config: LabelConfig, live: LiveConfig, store: str | None, timeout_seconds: float | None
) -> Ingested:
    with hard_timeout(timeout_seconds):
        try:
            done = add_labels(config, store)
        except DataError:  # a file is unusable; the labels of the others have been added
            watch_live(live, store)
            raise
        watch_live(live, store)
        return done


def day_of(moment: datetime, timezone: str) -> date:
    """Return the calendar day of a moment in a timezone.

    Args:
        moment: Timezone-aware time.
        timezone: IANA name of the timezone.
    """
    return moment.astimezone(ZoneInfo(timezone)).date()


# Scheduled pruning


@flow(
    name="scheduled-prune",
    version=environment.code_version(),
    flow_run_name=scheduled_prune_name,
    **FLOW_DEFAULTS,
    **PRUNING_HOOKS,
)
def scheduled_prune(
    config: RetentionConfig,
    store: str | None = None,
    flow_run_days: Annotated[int, Field(ge=1, le=36500)] | None = None,
    timeout_seconds: Timeout | None = None,
) -> Pruned | State[Any]:
    """Delete old runs, and data that no kept run needs, on a schedule.

    Args:
        config: What to keep.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        flow_run_days: Age in days from which nnbuild's flow runs are deleted from Prefect's
            database; they are kept if not given.
        timeout_seconds: Time in seconds after which the run is asked to stop; half a minute later
            it is killed. The next run completes what is left. No limit if not given.
    """
    given = {
        "config": config,
        "store": store,
        "flow_run_days": flow_run_days,
        "timeout_seconds": timeout_seconds,
    }
    return as_deployed(scheduled_prune, _prune, given, lambda _: scheduled_prune_name())


def _prune(
    config: RetentionConfig,
    store: str | None,
    flow_run_days: int | None,
    timeout_seconds: float | None,
) -> Pruned:
    with hard_timeout(timeout_seconds):
        pruned = prune_store(config, store)
        if flow_run_days is not None:
            prune_flow_runs(flow_run_days)
    return pruned
