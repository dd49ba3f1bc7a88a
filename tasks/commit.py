"""Commit: everything at once, the row that makes the run exist last."""

from prefect import task

from nnbuild import committing
from nnbuild.results import Committed, ExportedModel, HistoryTable, Reported
from nnbuild.store import Run
from tasks.prefect_side import STEP, can_be_retried, logger, show_markdown


@task(
    name="commit",
    task_run_name="commit {run.run_id}",
    retries=2,
    retry_delay_seconds=1,
    retry_condition_fn=can_be_retried,
    **STEP,
)
def commit(run: Run, history: HistoryTable, exported: ExportedModel, reported: Reported) -> Committed:  # noqa: ARG001  (it waits)
    """Commit a run; see `nnbuild.committing.commit_run`."""
    committed = committing.commit_run(run)
    logger().info("run %s is committed", run.run_id)
    show_markdown("nnbuild-files", links(run, committed), f"Where the outputs of run {run.run_id} are")
    return committed


def links(run: Run, committed: Committed) -> str:
    """The run's outputs as a Markdown table."""
    places = {"manifest": committed.manifest, "model": committed.model, **committed.tables}
    rows = "\n".join(f"| {name} | `{run.store}/{place}` |" for name, place in places.items() if place)
    return f"| output | path |\n| --- | --- |\n{rows}\n"
