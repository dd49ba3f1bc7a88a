"""A late run is skipped if another one of the same settings has begun since it was due: what it is for is done."""

from datetime import datetime
from typing import Any

from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run

SKIPPED = "Skipped"
_MADE = [
    "RUNNING",
    "COMPLETED",
    "FAILED",
]  # one that was cancelled or killed is not: the next goes on with it


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
