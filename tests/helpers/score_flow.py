"""A scoring flow's configuration, and what it leaves on the Prefect server."""

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
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[str(run.id)]))
        found = client.read_artifacts(artifact_filter=wanted)
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[flow_name]))
        )
    return {each.key: each.data for each in found}, sorted(each.name for each in tasks)
