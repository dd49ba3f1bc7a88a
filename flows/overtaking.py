"""Decide for a scheduled run that starts late which settings it takes, and if it is still wanted.

The server gives a run its parameters when it plans it, which can be days before it starts.
Registering a deployment again removes the runs that are planned for later; those that are due
already, or wait for a place, keep the parameters of the time before.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

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
