"""Clean up after a flow run that did not complete, and tell people how to resume it.

Prefect passes hooks the arguments `flow`, `flow_run` and `state` by name. The hooks of a cancelled
run are called by the serving process, after the run's own process has ended. So they rely on
nothing but the store.
"""

from datetime import UTC, datetime
from typing import Any

from prefect.logging import get_logger
from prefect.logging.loggers import flow_run_logger

from nnbuild.errors import NnbuildError
from nnbuild.pipeline import commit
from nnbuild.runtime.text import join_lines, sanitize
from nnbuild.store import Run, Store
from tasks.displays import outward
from tasks.events import STOPPED, emit_event, send_webhook


def on_run_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Report a retraining run that failed, crashed or was cancelled."""
    _report(flow, flow_run, state, resume_hint(flow_run, state))


def on_scoring_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Report a scoring run that failed, crashed or was cancelled."""
    hint = (
        "Unless the input is invalid, finished shards are kept; the next run, or the same "
        "`nnbuild score` command, resumes it."
    )
    _report(flow, flow_run, state, f"{_describe(state)} {hint}")


def on_labelling_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Report a labelling run that failed, crashed or was cancelled."""
    hint = "Labels that were added are kept; the next run, or `nnbuild label`, adds the others."
    _report(flow, flow_run, state, f"{_describe(state)} {hint}")


def on_pruning_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Report a pruning run that failed, crashed or was cancelled."""
    hint = "The next run, or `nnbuild prune`, deletes what is left."
    _report(flow, flow_run, state, f"{_describe(state)} {hint}")


def on_run_cancellation(flow: Any, flow_run: Any, state: Any) -> None:
    """Record that a person has cancelled a retraining run, and report it.

    A signal to `serve`, a timeout and a crash do not call this hook.
    """
    record_cancellation(flow_run)
    on_run_failure(flow, flow_run, state)


def record_cancellation(flow_run: Any) -> None:
    """Record in a staged run that a person has cancelled it, so that no scheduled run resumes it.

    A failure is logged, and not raised.

    Args:
        flow_run: Flow run that was resuming the run, or has begun it.
    """
    try:
        run = _staged_run(Store(flow_run.parameters.get("store")), flow_run)
        if run is not None:
            run.mark_cancelled(datetime.now(UTC))
    except (NnbuildError, OSError) as error:
        get_logger("nnbuild").warning("cannot record the cancellation: %s", error)


RETRAINING_HOOKS: dict[str, Any] = {
    "on_failure": [on_run_failure],
    "on_crashed": [on_run_failure],
    "on_cancellation": [on_run_cancellation],
}
LABELLING_HOOKS: dict[str, Any] = {
    "on_failure": [on_labelling_failure],
    "on_crashed": [on_labelling_failure],
    "on_cancellation": [on_labelling_failure],
}
SCORING_HOOKS: dict[str, Any] = {
    "on_failure": [on_scoring_failure],
    "on_crashed": [on_scoring_failure],
    "on_cancellation": [on_scoring_failure],
}
PRUNING_HOOKS: dict[str, Any] = {
    "on_failure": [on_pruning_failure],
    "on_crashed": [on_pruning_failure],
    "on_cancellation": [on_pruning_failure],
}


def _report(flow: Any, flow_run: Any, state: Any, text: str) -> None:
    """Log a text, emit it as an event and send it to the webhook, each even if another fails."""
    text = sanitize(text)
    with outward("the log of the flow run"):
        flow_run_logger(flow_run, flow).error("%s", text)
    values = {"flow_run": flow_run.name, "state": state.name, "advice": text}
    emit_event(STOPPED, str(flow_run.id), values)
    message = f"{flow_run.name}: {text}"
    send_webhook(message, event=STOPPED, state=state.name, flow_run_id=str(flow_run.id))


def resume_hint(flow_run: Any, state: Any) -> str:
    """Complete interrupted commits in the store; describe how the run ended and how to resume it.

    Args:
        flow_run: Flow run that did not complete.
        state: Its final state.
    """
    end = _describe(state)
    try:
        store = Store(flow_run.parameters.get("store"))
        if not store.exists():
            return f"{end} There is no store at {store.root}."
        commit.complete_interrupted_commits(store)
        run = _staged_run(store, flow_run)
    except (NnbuildError, OSError) as error:
        get_logger("nnbuild").warning("%s", error)
        return f"{end} The store cannot be read: {error}"
    if run is None:
        return f"{end} There is nothing to resume; see `nnbuild runs --store {store.root}`."
    return f"{end} Resume it with: {run.resume_command}"


def _describe(state: Any) -> str:
    return f"{state.name.lower()}: {join_lines(str(state.message or ''))}"


def _staged_run(store: Store, flow_run: Any) -> Run | None:
    """Return the unfinished run that a flow run was resuming or has begun."""
    resumed = flow_run.parameters.get("resume")
    if resumed in {each.run_id for each in store.unfinished_runs()}:
        return store.unfinished_run(str(resumed))
    return store.run_of_flow(str(flow_run.id))
