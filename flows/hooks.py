"""What happens when a flow run ends badly: the store is put in order, and a person is told how to go on."""

from datetime import UTC, datetime
from typing import Any

from prefect.logging import get_logger
from prefect.logging.loggers import flow_run_logger

from nnbuild.errors import NnbuildError
from nnbuild.pipeline import commit
from nnbuild.runtime.text import join_lines, sanitize
from nnbuild.store import Run, Store
from tasks.artifacts import outward
from tasks.events import STOPPED, emit, notify


def on_bad_end(flow: Any, flow_run: Any, state: Any) -> None:
    """Of a run that failed, crashed or was cancelled. Prefect calls it with arguments of these names.

    A cancelled run's hook is called by the process that serves, after the run's own was ended; so it relies on
    nothing but the store.
    """
    _report(flow, flow_run, state, advice(flow_run, state))


def record_cancellation(flow: Any, flow_run: Any, state: Any) -> None:  # noqa: ARG001
    """Record in a staged run that a person has cancelled it: no scheduled run resumes it.

    Prefect calls it with arguments of these names. A signal to `serve`, a timeout and a crash do
    not come here.
    """
    try:
        run = _waiting(Store(flow_run.parameters.get("store")), flow_run)
        if run is not None:
            run.mark_cancelled(datetime.now(UTC))
    except (NnbuildError, OSError) as error:
        get_logger("nnbuild").warning("the cancellation is not recorded: %s", error)


def on_bad_scores(flow: Any, flow_run: Any, state: Any) -> None:
    """Of a scoring that failed, crashed or was cancelled: what it has waits, and the next run goes on with it."""
    text = (
        f"{_end_of(state)} Parts that are whole are kept; the next run, or the same `nnbuild score` again, "
        "goes on with them."
    )
    _report(flow, flow_run, state, text)


def _report(flow: Any, flow_run: Any, state: Any, text: str) -> None:
    """Log a text, and send it as an event and to the webhook; each of them if the others fail too."""
    text = sanitize(text)
    with outward("the log of the flow run"):
        flow_run_logger(flow_run, flow).error("%s", text)
    about = {"flow_run": flow_run.name, "state": state.name, "advice": text}
    emit(STOPPED, str(flow_run.id), about)
    notify(
        f"{flow_run.name}: {text}", event=STOPPED, state=state.name, flow_run_id=str(flow_run.id)
    )


def _end_of(state: Any) -> str:
    return f"{state.name.lower()}: {join_lines(str(state.message or ''))}"


def advice(flow_run: Any, state: Any) -> str:
    """Put the store in order, and say in a line what became of the run and what to do."""
    told = _end_of(state)
    try:
        store = Store(flow_run.parameters.get("store"))
        if not store.exists():
            return f"{told} There is no store at {store.root}."
        commit.complete_interrupted_commits(store)
        run = _waiting(store, flow_run)
    except (NnbuildError, OSError) as error:
        get_logger("nnbuild").warning("%s", error)
        return f"{told} The store cannot be looked at: {error}"
    if run is not None:
        return f"{told} It waits; go on with it by: nnbuild run --resume {run.run_id} --store {run.store}"
    return f"{told} Nothing waits to be resumed; see `nnbuild runs --store {store.root}`."


def _waiting(store: Store, flow_run: Any) -> Run | None:
    resumed = flow_run.parameters.get("resume")
    if resumed in {each.run_id for each in store.unfinished_runs()}:
        return store.unfinished_run(str(resumed))
    return store.run_of_flow(str(flow_run.id))
