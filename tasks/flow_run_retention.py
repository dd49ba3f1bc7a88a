"""Delete old flow runs of nnbuild from Prefect's database, through the API of its server.

Prefect's own service, see `PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED`, deletes all flow runs of a
server by age, those of other projects as well. There is no API to delete events: the server deletes
them after `PREFECT_SERVER_EVENTS_RETENTION_PERIOD`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowFilter, FlowRunFilter, LogFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

FLOWS = (
    "retrain",
    "score",
    "sweep",
    "scheduled-retrain",
    "scheduled-score",
    "scheduled-label",
    "scheduled-prune",
)
_OUR_PARAMETERS = {"config", "store"}  # of each of these flows; others may have the same names
_FINAL = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
_PAGE = 200  # most that the server returns at once
_SECONDS_FOR_LOGS = 10.0


class FlowRunsPruned(NamedTuple):
    """Counts of what was deleted from Prefect's database, or would be in a dry run.

    Attributes:
        flow_runs: Number of flow runs; their task runs and logs are deleted with them.
        artifacts: Number of artifacts.
    """

    flow_runs: int
    artifacts: int


def delete_flow_runs(before: datetime, *, dry_run: bool = False) -> FlowRunsPruned:
    """Delete the flow runs of nnbuild that ended before a time, with task runs, logs and artifacts.

    Runs that have not ended, such as paused ones, stay.

    Args:
        before: Aware time.
        dry_run: Whether to change nothing.
    """
    artifacts = 0
    with get_client(sync_client=True) as client:
        runs = list(_ended_runs(client, before))
        for start in range(0, len(runs), _PAGE):
            some = runs[start : start + _PAGE]
            for artifact in list(_artifacts(client, some)):
                artifacts += 1
                if not dry_run:
                    with suppress(ObjectNotFound):
                        client.delete_artifact(artifact)
        if not dry_run:
            for each in runs:
                with suppress(ObjectNotFound):
                    client.delete_flow_run(each)
            _wait_for_logs(client, runs[-_PAGE:])
    return FlowRunsPruned(len(runs), artifacts)


def _ended_runs(client: Any, before: datetime) -> Iterator[Any]:
    """Yield the IDs of the flow runs of nnbuild that ended before a time."""
    ended = {
        "state": {"type": {"any_": _FINAL}},
        "end_time": {"before_": before},
    }
    for page in _pages(
        client.read_flow_runs,
        flow_filter=FlowFilter.model_validate({"name": {"any_": list(FLOWS)}}),
        flow_run_filter=FlowRunFilter.model_validate(ended),
        sort=FlowRunSort.ID_DESC,
    ):
        yield from (each.id for each in page if each.parameters.keys() >= _OUR_PARAMETERS)


def _artifacts(client: Any, runs: Sequence[Any]) -> Iterator[Any]:
    criteria = {"flow_run_id": {"any_": list(runs)}}
    for page in _pages(
        client.read_artifacts, artifact_filter=ArtifactFilter.model_validate(criteria)
    ):
        yield from (each.id for each in page)


def _pages(read: Any, **criteria: Any) -> Iterator[list[Any]]:
    offset = 0
    while page := read(**criteria, limit=_PAGE, offset=offset):
        yield page
        offset += len(page)


def _wait_for_logs(client: Any, runs: Sequence[Any]) -> None:
    """Wait until the server has deleted the logs of flow runs, which it does in the background.

    An embedded server ends with this process, so logs that it has not deleted by then would stay.
    """
    if not runs:
        return
    logs = LogFilter.model_validate({"flow_run_id": {"any_": list(runs)}})
    deadline = time.monotonic() + _SECONDS_FOR_LOGS
    while client.read_logs(logs, limit=1) and time.monotonic() < deadline:
        time.sleep(0.1)
