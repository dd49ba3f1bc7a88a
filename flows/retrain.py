"""Retraining, as a recipe: each task hands paths, ids and digests to the next."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.transactions import transaction
from pydantic import Field

from flows.hooks import on_bad_end, record_cancellation
from flows.outage import prompt_stop
from nnbuild import pipeline
from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import open_run, run_context
from nnbuild.runtime.text import markdown_text, sanitize
from nnbuild.store import Run
from nnbuild.store.step_results import Committed, Decided
from tasks.artifacts import logger, outward
from tasks.retrain import (
    build,
    calibrate,
    check,
    commit,
    compile_network,
    decide,
    evaluate,
    export,
    fit,
    load,
    persist_history,
    report,
    score,
)


class Answer(RunInput):
    """What a person says about a challenger; Prefect's UI shows it as a form."""

    promote: bool = Field(default=False, description="Make it the champion")
    comment: str = Field(
        default="", max_length=500, description="Why; it is kept with the decision"
    )


def approve(run: Run, decided: Decided) -> Decided:
    """Pause until a person has answered, if the gate's yes needs one; no answer in time is a no.

    No task, since only a flow can be paused.
    """
    if not decided.waits:
        return decided
    seconds = run.config.gate.approval_seconds
    logger().info("%s: a person decides within %d s, by the Resume button", decided.reason, seconds)
    form = Answer.with_initial_data(
        description=markdown_text(f"Run {run.run_id}: {decided.reason}. Make it the champion?")
    )
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=seconds, poll_interval=1)
    except FlowPauseTimeout:
        return pipeline.record_approval(
            run, promote=False, comment=f"nobody answered within {seconds} s"
        )
    return pipeline.record_approval(run, promote=answer.promote, comment=answer.comment)


def _name() -> str:
    parameters: dict[str, Any] = flow_run.parameters
    if parameters.get("resume"):
        return sanitize(f"resume-{parameters['resume']}")
    config = RunConfig.model_validate(parameters.get("config") or {})
    name = f"{config.model.name}-{Path(config.dataset.name).stem}"
    return sanitize(f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}")


def _tag(run: Run) -> None:
    """Tags stand on the flow run alone: on SQLite a tagged task can wait seconds for the lock."""
    names = {f"model:{run.config.model.name}", f"dataset:{run.config.dataset.name}"}
    with outward("the tags of the flow run"), get_client(sync_client=True) as client:
        tags = {*flow_run.tags, "nnbuild", *map(sanitize, names)}
        client.update_flow_run(flow_run.id, tags=sorted(tags))


@flow(
    name="retrain",
    flow_run_name=_name,
    on_failure=[on_bad_end],
    on_crashed=[on_bad_end],
    on_cancellation=[record_cancellation, on_bad_end],
)
def retrain(
    config: RunConfig = RunConfig(),  # noqa: B008  (frozen)
    store: str | None = None,
    resume: str | None = None,
) -> Committed:
    """Retrain, score and commit.

    Args:
        config: what is trained, on what and how.
        store: its root; $NNBUILD_STORE or ./nnbuild-store if not given.
        resume: the id of a run that was stopped; its own config then holds.
    """
    run = open_run(config, store, resume=resume, flow_run_id=flow_run.id)
    with prompt_stop(), run_context(run):
        run.attach_flow_run(str(flow_run.id))
        _tag(run)
        data = load(run)
        checked = check(run, data)
        built = build(run, data, checked)
        compiled = compile_network(run, data, built)
        fitted = fit(run, data, compiled)
        history = persist_history(run, fitted)
        exported = export(run, data, fitted)
        evaluated = evaluate(run, data, fitted)
        calibrated = calibrate(run, data, fitted)
        scored = score(run, data, fitted)
        with transaction() as publication:
            publication.set("run", run)
            decided = approve(run, decide(run, data, evaluated, scored))
            reported = report(run, data, calibrated, decided)
            return commit(run, history, exported, reported)
