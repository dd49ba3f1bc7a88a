"""Tasks of the scheduled pruning: the store, and Prefect's database."""

from datetime import UTC, datetime, timedelta

from prefect import task

from nnbuild.pipeline import retention
from nnbuild.pipeline.retention import Pruned, RetentionConfig
from nnbuild.store import Store
from tasks import flow_run_retention
from tasks.artifacts import TASK_DEFAULTS, artifact_key, retry_after, show_table
from tasks.displays import logger


@task(name="prune store", task_run_name="prune store", **retry_after(10, 60))
def prune_store(config: RetentionConfig, store: str | None) -> Pruned:
    """Delete old runs and data that no kept run needs; see `nnbuild.pipeline.retention.prune`."""
    opened = Store.open(store)
    pruned = retention.prune(opened, config, now=datetime.now(UTC))
    deleted = {"run": pruned.runs, "scoring job": pruned.jobs, "dataset": pruned.parts}
    rows = [{"deleted": kind, "id": each} for kind, ids in deleted.items() for each in ids]
    summary = f"Deleted {pruned.summary()}"
    show_table(artifact_key("nnbuild-pruned", str(opened.root)), rows, summary)
    logger().info("%s", summary)
    return pruned


@task(name="prune flow runs", task_run_name="prune flow runs", **TASK_DEFAULTS)
def prune_flow_runs(days: int) -> None:
    """Delete nnbuild's flow runs that ended more than `days` days ago from Prefect's database."""
    counts = flow_run_retention.delete_flow_runs(datetime.now(UTC) - timedelta(days=days))
    logger().info("deleted %d flow runs and %d artifacts", *counts)
