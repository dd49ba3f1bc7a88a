"""Name, tag and pause the current flow run."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from nnbuild import pipeline
from nnbuild.config.schema import RunConfig
from nnbuild.runtime.text import markdown_text, sanitize
from nnbuild.scoring import ScoreConfig
from nnbuild.store import Run
from nnbuild.store.step_results import Decided
from tasks.displays import logger, outward


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
    return sanitize(f"{config.model.name}-{Path(config.dataset.name).stem}-{time}")


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
    with outward("the tags of the flow run"), get_client(sync_client=True) as client:
        tags = {*flow_run.tags, "nnbuild", *map(sanitize, names)}
        client.update_flow_run(flow_run.id, tags=sorted(tags))


class Answer(RunInput):
    """A person's answer about a challenger. Prefect's UI shows it as a form."""

    promote: bool = Field(default=False, description="Promote the run to champion")
    comment: str = Field(default="", max_length=500, description="Reason; stored with the decision")


def approve(run: Run, decided: Decided) -> None:
    """Pause until a person has answered, if the promotion needs an approval.

    No answer in time counts as a rejection. This is not a task, since only flows can pause.

    Args:
        run: Run to be promoted.
        decided: Decision of the gate.
    """
    if not decided.waits:
        return
    seconds = run.config.gate.approval_seconds
    logger().info(
        "%s: waiting %d s for a person's approval, by the Resume button", decided.reason, seconds
    )
    form = Answer.with_initial_data(
        description=markdown_text(f"Run {run.run_id}: {decided.reason}. Promote it to champion?")
    )
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=seconds, poll_interval=1)
    except FlowPauseTimeout:
        answer = Answer(promote=False, comment=f"no answer within {seconds} s")
    pipeline.record_approval(run, promote=answer.promote, comment=answer.comment)
