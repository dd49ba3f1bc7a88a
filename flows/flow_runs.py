"""Name, tag and pause the current flow run."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Completed, Running
from pydantic import Field

from flows.concurrency_slot import keep_running_without_slot
from nnbuild import pipeline
from nnbuild.config.schema import RunConfig
from nnbuild.data.days import dataset_name
from nnbuild.runtime.date_patterns import is_dated
from nnbuild.runtime.signals import timeout_stopped
from nnbuild.runtime.text import markdown_code, markdown_text, sanitize
from nnbuild.scoring import ScoreConfig
from nnbuild.store import Run, Store
from nnbuild.store.step_results import Committed, Decided, LoadedData
from tasks.artifacts import store_link
from tasks.displays import logger, outward
from tasks.events import request_approval
from tasks.retrain import show_decision
from tasks.silent_server import waiting_once

FLOW_DEFAULTS: dict[str, Any] = {
    "persist_result": False,
    "result_storage": Path(get_current_settings().results.local_storage_path),
}
"""Settings of every flow. The store keeps the results, and Prefect would pickle them. Without a
storage, each flow run would ask the server three times for the default one."""
keep_running_without_slot()  # before the engine, which imports the flow, begins a run


def retrain_name() -> str:
    """Return a name for the current run of `retrain`."""
    resumed = flow_run.parameters.get("resume")
    if resumed:
        return sanitize(f"resume-{resumed}")
    return _run_name(flow_run.parameters, f"{datetime.now(UTC):%Y%m%dT%H%M%S}")


def scheduled_retrain_name(parameters: Mapping[str, Any] | None = None) -> str:
    """Return a name for the current run of `scheduled_retrain`.

    Args:
        parameters: Parameters of the flow; those of the flow run if not given.
    """
    return _run_name(parameters or flow_run.parameters, _due())


def _run_name(parameters: Mapping[str, Any], time: str) -> str:
    config = RunConfig.model_validate(parameters.get("config") or {})
    name = config.dataset.name
    dataset = dataset_name(name) if is_dated(name) else Path(name).stem
    return sanitize(f"{config.model.name}-{dataset}-{time}")


def score_name() -> str:
    """Return a name for the current run of `score`."""
    resumed = flow_run.parameters.get("resume")
    if resumed:
        return sanitize(f"resume-{resumed}")
    config = ScoreConfig.model_validate(flow_run.parameters["config"])
    return sanitize(f"score-{config.model}-{config.input.rstrip('/').rpartition('/')[2]}")


def scheduled_score_name(parameters: Mapping[str, Any] | None = None) -> str:
    """Return a name for the current run of `scheduled_score`.

    Args:
        parameters: Parameters of the flow; those of the flow run if not given.
    """
    config = ScoreConfig.model_validate((parameters or flow_run.parameters)["config"])
    return sanitize(f"score-{config.model}-{_due()}")


def scheduled_label_name() -> str:
    """Return a name for the current run of `scheduled_label`."""
    return f"label-{_due()}"


def scheduled_prune_name() -> str:
    """Return a name for the current run of `scheduled_prune`."""
    return f"prune-{_due()}"


def sweep_name() -> str:
    """Return a name for the current run of `sweep`."""
    sweep_id = flow_run.parameters.get("sweep_id")
    return f"sweep-{sweep_id}" if sweep_id else "sweep"


def _due() -> str:
    return f"{flow_run.scheduled_start_time:%Y%m%dT%H%M}"


def tag(run: Run) -> None:
    """Tag the flow run with its model and its dataset.

    Tasks are not tagged: on SQLite a tagged task can wait for seconds for the database's lock.
    """
    names = {f"model:{run.config.model.name}", f"dataset:{run.config.dataset.name}"}
    with (
        outward("the tags of the flow run"),
        waiting_once(),
        get_client(sync_client=True) as client,
    ):
        tags = {*flow_run.tags, "nnbuild", *map(sanitize, names)}
        client.update_flow_run(flow_run.id, tags=sorted(tags))


class Answer(RunInput):
    """A person's answer about a challenger. Prefect's UI shows it as a form."""

    promote: bool = Field(default=False, description="Promote the run to champion")
    comment: str = Field(default="", max_length=500, description="Reason; stored with the decision")


def approve(run: Run, data: LoadedData, decided: Decided) -> bool:
    """Ask a person whether to promote a run, if it needs an approval, and pause until the answer.

    No answer in time counts as a rejection. The time of the wait does not count as the run's. This
    is not a task, since only flows can pause.

    Args:
        run: Run to be promoted, with its report.
        data: Its dataset.
        decided: Decision of the gate.

    Returns:
        Whether a person was asked; the report is outdated then.
    """
    if not decided.waits:
        return False
    seconds = run.config.gate.approval_seconds
    logger().info(
        "%s: waiting %d s for a person's approval, by the Resume button", decided.reason, seconds
    )
    request_approval(run, decided, flow_run.ui_url)
    form = Answer.with_initial_data(description=_question(run, decided))
    start = time.monotonic()
    with timeout_stopped():
        try:
            answer = pause_flow_run(wait_for_input=form, timeout=seconds, poll_interval=1)
        except FlowPauseTimeout:
            answer = Answer(promote=False, comment=f"no answer within {seconds} s")
            _end_pause()
    answered = pipeline.record_approval(
        run,
        promote=answer.promote,
        comment=answer.comment,
        seconds_waited=time.monotonic() - start,
    )
    show_decision(run, data, answered)
    return True


def _end_pause() -> None:
    """Set the flow run to Running: Prefect fails a flow run that ends after a pause timed out."""
    with outward("the end of the pause"), get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(flow_run.id)), Running(), force=True)


def _question(run: Run, decided: Decided) -> str:
    """Return the text of the form, as Markdown: accuracies, result of the gate, report."""
    lines = [
        f"Run {run.run_id} passed the gate. Promote it to champion?",
        f"Test accuracy of this run: {_percent(decided.figures['accuracy'])}",
    ]
    if decided.champion is not None and "champion_accuracy" in decided.figures:
        theirs = _percent(decided.figures["champion_accuracy"])
        lines.append(f"Accuracy of champion {decided.champion} on the same images: {theirs}")
    lines.append(f"Gate: {decided.gate_reason}")
    return "\n\n".join([*map(markdown_text, lines), f"Report: {_staged_report(run)}"])


def _staged_report(run: Run) -> str:
    path = run.folder / "report.html"
    if run.url is not None:  # the report is on this machine only until the run is committed
        return markdown_code(str(path))
    return store_link(run.store, run.relative(path))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


_OUTCOMES = {
    "promoted": "promoted",
    "rejected": "not promoted",
    "kept-identical": "not promoted, the same predictions as the champion's",
    "not-enough-evidence": "not promoted, not enough evidence",
    "skipped": "not promoted, gate skipped",
    "gate-off": "not promoted, gate off",
}


def with_summary(committed: Committed, run: Run) -> Committed:
    """Return the final state of a flow, whose message has the accuracy and the outcome.

    Prefect returns the `committed` in this state to the caller of the flow.
    """
    with outward("the message of the flow run's state"):
        manifest = Store(run.store).manifest(run.run_id)
        decided, accuracy = manifest.steps.decide, manifest.row.test_accuracy or 0.0
        outcome = _OUTCOMES.get((decided and decided.outcome) or "gate-off", "")
        message = f"test accuracy {_percent(accuracy)}, {outcome}"
        return cast("Committed", Completed(data=committed, message=message))
    return committed
