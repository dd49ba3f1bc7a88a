"""Approve: a person has the last word, if the config says so."""

from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from nnbuild import pipeline
from nnbuild.runtime.text import markdown_text
from nnbuild.store import Run
from nnbuild.store.step_results import Decided
from tasks.prefect_side import logger


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
