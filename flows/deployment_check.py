"""Compare a scheduled run with its deployment, which may have changed since it was planned."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from prefect import Flow, State, get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed

from tasks.displays import logger

T = TypeVar("T")
SKIPPED = "Skipped"
"""Name of the final state of a run that had nothing to do."""
REMOVED = "The schedule that planned this run is no longer part of the deployment."
"""Message of a run whose schedule was removed."""


def skipped(message: str) -> State[Any]:
    """Return the final state of a run that had nothing to do."""
    return Completed(name=SKIPPED, message=message)


class DeploymentCheck(NamedTuple):
    """Difference between the current run and its deployment as it is now.

    Attributes:
        removed: Whether the schedule that planned the run was removed.
        parameters: Current parameters of that schedule, if the run has others; else None.
        timezone: Timezone of the schedule; None for a run that no schedule planned.
    """

    removed: bool = False
    parameters: dict[str, Any] | None = None
    timezone: str | None = None


def check_deployment() -> DeploymentCheck:
    """Compare the current run with its deployment.

    A run that a person or an automation started keeps its parameters: they were meant for it.
    """
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        if run.deployment_id is None or not run.auto_scheduled:
            return DeploymentCheck()
        try:
            deployment = client.read_deployment(run.deployment_id)
        except ObjectNotFound:
            return DeploymentCheck(removed=True)
    schedule = _schedule_of(run, deployment.schedules)
    if schedule is None:
        return DeploymentCheck(removed=True)
    parameters = {**deployment.parameters, **schedule.parameters}
    return DeploymentCheck(
        parameters=None if parameters == run.parameters else parameters,
        timezone=getattr(schedule.schedule, "timezone", None) or "UTC",
    )


def _schedule_of(run: Any, schedules: list[Any]) -> Any | None:
    """Return the schedule that planned a run.

    A deployment that is registered again gets schedules with new IDs. Then the schedule is found by
    the name that the run shows as its creator's: its slug, or without one the name of its class.
    """
    if run.created_by is None:
        return None
    by_id = [each for each in schedules if each.id == run.created_by.id]
    by_name = [
        each
        for each in schedules
        if (each.slug or type(each.schedule).__name__) == run.created_by.display_value
    ]
    if by_id:
        return by_id[0]
    return by_name[0] if len(by_name) == 1 else None


def update_flow_run(parameters: Mapping[str, Any], name: str) -> None:
    """Replace the parameters and the name of the current run on the server."""
    logger().warning(
        "The deployment's settings have changed since this run was planned; using the new ones."
    )
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, parameters=dict(parameters), name=name)


def as_deployed(
    scheduled: Flow[..., Any],
    work: Callable[..., T],
    given: Mapping[str, Any],
    name: Callable[[Mapping[str, Any]], str],
) -> T | State[Any]:
    """Do the work of a scheduled run with the parameters that its deployment has now.

    Args:
        scheduled: The flow, which validates the parameters.
        work: Function that takes the parameters of the flow.
        given: Parameters that the run was planned with.
        name: Function that returns the name of the run from its parameters.
    """
    check = check_deployment()
    if check.removed:
        return skipped(REMOVED)
    if check.parameters is None:
        return work(**given)
    update_flow_run(check.parameters, name(check.parameters))
    return work(**scheduled.validate_parameters(check.parameters))
