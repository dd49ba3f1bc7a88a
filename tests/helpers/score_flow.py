"""Settings of a scoring flow, and its artifacts and tasks on the Prefect server."""

from artifact_keys import kind_of
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterName,
)

from nnbuild.scoring import ScoreConfig


def config(path, **more):
    return ScoreConfig.model_validate(
        {"input": str(path), "batch_size": 32, "shard_rows": 60, **more}
    )


def artifacts(flow_name):
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[flow_name]))
        )
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[str(run.id)]))
        published = client.read_artifacts(artifact_filter=of_run)
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[flow_name]))
        )
    by_kind = {kind_of(each.key): each.data for each in published}
    return by_kind, sorted(each.name for each in tasks)
