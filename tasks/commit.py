"""Commit: everything at once, the row that makes the run exist last."""

from collections.abc import Iterable, Mapping
from typing import Any

from prefect import task

from nnbuild.pipeline import commit as committing
from nnbuild.report.metadata import facts
from nnbuild.runtime.text import markdown_code, markdown_text
from nnbuild.store import Run, Store
from nnbuild.store.step_results import Committed, ExportedModel, HistoryTable, Reported
from tasks.prefect_side import STEP, can_be_retried, logger, outward, show_markdown
from tasks.telling import COMMITTED, PROMOTED, REJECTED, announce, notify
from tasks.watching import displays

_HEADLINE = ("accuracy", "loss", "expected_calibration_error", "macro_f1")


@task(
    name="commit",
    task_run_name="commit {run.run_id}",
    retries=2,
    retry_delay_seconds=1,
    retry_condition_fn=can_be_retried,
    **STEP,
)
def commit(
    run: Run,
    history: HistoryTable,  # noqa: ARG001  (it waits)
    exported: ExportedModel,  # noqa: ARG001  (it waits)
    reported: Reported,  # noqa: ARG001  (it waits)
) -> Committed:
    """Commit a run; see `nnbuild.pipeline.commit.commit_run`."""
    committed = committing.commit_run(run)
    logger().info("run %s is committed", run.run_id)
    for display in displays():
        display.committed(run.run_id)
    with outward("artifact nnbuild-files"):
        show_markdown(
            "nnbuild-files", links(run, committed), f"Where the outputs of run {run.run_id} are"
        )
    with outward("the report of the commit"):
        manifest = Store(run.store).manifest(run.run_id)
        _tell(run, manifest)
        show_markdown("nnbuild-report", headline(run, manifest), f"What came of run {run.run_id}")
    return committed


def _tell(run: Run, manifest: Mapping[str, Any]) -> None:
    """Say what was committed, and what the gate made of it."""
    row, decided = manifest["row"], manifest["steps"].get("decide")
    figures = {
        name: row[name]
        for name in ("dataset", "model", "seed", "epochs", "test_accuracy", "test_loss")
    }
    announce(COMMITTED, run.run_id, figures)
    if decided is None or not run.config.gate.enabled:
        return
    about = {"reason": decided["reason"], "champion": decided["champion"], **decided["figures"]}
    announce(PROMOTED if row["promoted"] else REJECTED, run.run_id, about)
    if row["promoted"]:
        notify(
            f"{row['model']} on {row['dataset']} is the new champion: test accuracy {row['test_accuracy']:.4f}; "
            f"{decided['reason']}",
            event=PROMOTED,
            run_id=run.run_id,
            store=run.store,
            test_accuracy=row["test_accuracy"],
        )


def headline(run: Run, manifest: Mapping[str, Any]) -> str:
    """The head of the report as Markdown: the figures, the decision, how the run was made, and where the page is."""
    row, metrics = manifest["row"], manifest["steps"]["evaluate_model"]["metrics"]
    decided = manifest["steps"].get("decide")
    of_run = [
        (name.replace("_", " "), f"{metrics[name]:.4f}") for name in _HEADLINE if name in metrics
    ]
    of_run += [("decision", decided["reason"])] if decided else []
    rows = [(name, markdown_text(value)) for name, value in [*of_run, *facts(manifest)]]
    rows.append(("report", markdown_code(f"{run.store}/runs/{run.run_id}/report.html")))
    accuracy = f"{row['test_accuracy']:.2%} of the test images right"
    title = f"{markdown_text(row['model'])} on {markdown_text(row['dataset'])}: {accuracy}"
    return f"## {title}\n\n| | |\n| --- | --- |\n{_table_rows(rows)}\n"


def links(run: Run, committed: Committed) -> str:
    """The run's outputs as a Markdown table."""
    places = {"manifest": committed.manifest, "model": committed.model, **committed.tables}
    rows = [
        (name, markdown_code(f"{run.store}/{place}")) for name, place in places.items() if place
    ]
    return f"| output | path |\n| --- | --- |\n{_table_rows(rows)}\n"


def _table_rows(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows)
