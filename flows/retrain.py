"""Retrain an image classifier: from the dataset to a committed run.

Tasks pass each other paths, IDs and digests, never models or arrays.
"""

from prefect import flow
from prefect.runtime import flow_run
from prefect.transactions import transaction

from flows.embedded_server import prompt_stop
from flows.flow_runs import FLOW_DEFAULTS, approve, retrain_name, tag, with_summary
from flows.hooks import RETRAINING_HOOKS
from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import open_run, run_context
from nnbuild.store.step_results import Committed
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


@flow(name="retrain", flow_run_name=retrain_name, **FLOW_DEFAULTS, **RETRAINING_HOOKS)
def retrain(
    config: RunConfig = RunConfig(),
    store: str | None = None,
    resume: str | None = None,
) -> Committed:
    """Retrain a model, decide on its promotion and commit every result.

    Args:
        config: Run configuration.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        resume: ID of a stopped run to resume. Its own configuration applies.
    """
    run = open_run(config, store, resume=resume, flow_run_id=flow_run.id)
    with prompt_stop(), run_context(run):
        run.attach_flow_run(str(flow_run.id))
        tag(run)
        data = load(run)
        checked = check(run, data)
        built = build(run, data, wait_for=[checked])
        compiled = compile_network(run, data, built)
        fitted = fit(run, data, compiled)
        history = persist_history(run, fitted)
        exported = export(run, data, fitted)
        evaluated = evaluate(run, data, fitted)
        calibrated = calibrate(run, data, fitted)
        scored = score(run, data, fitted)
        with transaction() as publication:
            publication.set("run", run)
            decided = decide(run, data, wait_for=[evaluated, scored])
            reported = report(run, data, wait_for=[calibrated, decided])
            if approve(run, data, decided):
                reported = report(run, data, wait_for=[decided])
            committed = commit(run, wait_for=[history, exported, reported])
        return with_summary(committed, run)
