"""Decide: the gate between a run and the champion."""

from prefect import task
from prefect.transactions import Transaction

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import Decided, Evaluated, LoadedData, Scored
from tasks.prefect_side import STEP, logger, rounded, show_table


@task(name="decide", task_run_name="decide on {run.run_id}", **STEP)
def decide(run: Run, data: LoadedData, evaluated: Evaluated, scored: Scored) -> Decided:  # noqa: ARG001  (it waits)
    """Hold a run against the champion; see `nnbuild.pipeline.decide`."""
    decided = pipeline.decide(run, data)
    logger().info("%s: %s", "promoted" if decided.promote else "not promoted", decided.reason)
    told: dict[str, object] = {
        "decision": "promoted" if decided.promote else "not promoted",
        "reason": decided.reason,
    }
    told |= {"champion": decided.champion or "none"}
    told |= {name: rounded(value) for name, value in decided.figures.items() if name != "promoted"}
    show_table(
        "nnbuild-decision",
        [{"figure": name, "value": value} for name, value in told.items()],
        decided.reason,
    )
    return decided


@decide.on_rollback
def withdraw(publication: Transaction) -> None:
    """The commit behind it failed: what was decided is taken back; see `nnbuild.pipeline.revoke_decision`."""
    pipeline.revoke_decision(publication.get("run"))
