"""Retraining, as a recipe: each task hands paths, ids and digests to the next."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_client
from prefect.runtime import flow_run
from prefect.transactions import transaction

from flows.hooks import on_bad_end, record_cancellation
from flows.outage import prompt_stop
from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import open_run, run_context
from nnbuild.runtime.text import sanitize
from nnbuild.store import Run
from nnbuild.store.step_results import Committed
from tasks.approve import approve
from tasks.build import build
from tasks.calibrate import calibrate
from tasks.check import check
from tasks.commit import commit
from tasks.compile import compile_network
from tasks.decide import decide
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.fit import fit
from tasks.load import load
from tasks.persist_history import persist_history
from tasks.prefect_side import outward
from tasks.report import report
from tasks.score import score


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
