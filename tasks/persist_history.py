"""Persist the History: it has been on the disk since the first epoch, and is now held to its schema."""

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import FittedModel, HistoryTable
from tasks.prefect_side import STEP, logger


@task(name="persist history", task_run_name="persist {fitted.epochs} epochs", **STEP)
def persist_history(run: Run, fitted: FittedModel) -> HistoryTable:
    """Close the history table of a run; see `nnbuild.pipeline.persist_history`."""
    history = pipeline.persist_history(run, fitted)
    logger().info("%d epochs, %d rows", fitted.epochs, history.rows)
    return history
