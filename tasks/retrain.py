"""Tasks of a retraining run, in the order of the pipeline.

A task names its step for Prefect, logs and illustrates the result, and calls `nnbuild.pipeline` for
the work. Tasks pass each other small results: paths, IDs, digests and metrics.
"""

from collections.abc import Iterable

from prefect import task
from prefect.transactions import Transaction

from nnbuild import pipeline
from nnbuild.config.presets import is_fallback
from nnbuild.errors import CheckError
from nnbuild.evaluation.metrics import SUMMARY_METRICS
from nnbuild.pipeline.commit import commit_run
from nnbuild.report.facts import facts
from nnbuild.runtime.text import markdown_text
from nnbuild.store import Run, Store, champion
from nnbuild.store.manifests import Manifest
from nnbuild.store.step_results import (
    BuiltModel,
    Calibrated,
    CheckedData,
    Committed,
    CompiledModel,
    Decided,
    Evaluated,
    ExportedModel,
    FittedModel,
    HistoryTable,
    LoadedData,
    Reported,
    Scored,
)
from tasks.artifacts import (
    TASK_DEFAULTS,
    artifact_key,
    retry_after,
    rounded,
    run_name,
    show_image,
    show_markdown,
    show_table,
    store_link,
)
from tasks.displays import active_displays, logger, outward, show_note, warn
from tasks.events import (
    CHECK_FAILED,
    COMMITTED,
    PROMOTED,
    REJECTED,
    emit_run_event,
    send_webhook,
)
from tasks.progress import ProgressBar, ProgressReporter


@task(name="load", task_run_name=run_name("load {run.config.dataset.name}"), **retry_after(1, 10))
def load(run: Run) -> LoadedData:
    """Read and stage the dataset; see `nnbuild.pipeline.load_data`."""
    data = pipeline.load_data(run, progress=_show_download)
    logger().info("%s: %s images from %s", data.name, _counts(data), data.source)
    for remark in data.remarks:
        logger().warning("%s", remark)
        show_note(remark)
    return data


def _show_download(file: str, done: int, total: int | None) -> None:
    for display in active_displays():
        display.download(file, done, total)


def _counts(data: LoadedData) -> str:
    if data.validation:
        return f"{data.train:,} training, {data.validation:,} validation and {data.test:,} test"
    return f"{data.train:,} training and {data.test:,} test"


@task(name="check", task_run_name=run_name("check {data.name}"), **TASK_DEFAULTS)
def check(run: Run, data: LoadedData) -> CheckedData:
    """Check the dataset; see `nnbuild.pipeline.check_data`."""
    try:
        checked = pipeline.check_data(run, data)
    except CheckError as error:
        values = {"dataset": data.name, "digest": data.digest, "reason": str(error)}
        emit_run_event(CHECK_FAILED, run.run_id, values)
        raise
    rows = (each.model_dump() for each in checked.checks)
    show_table(
        artifact_key("nnbuild-data-checks", run.store, data.name), rows, f"Checks on {data.name}"
    )
    for each in checked.checks:
        if not each.passed:
            logger().warning(
                "%s: %s, expected %s. %s", each.name, each.measured, each.bound, each.detail
            )
    return checked


@task(name="build", task_run_name=run_name("build {run.config.model.name}"), **TASK_DEFAULTS)
def build(run: Run, data: LoadedData) -> BuiltModel:
    """Build the network; see `nnbuild.pipeline.build_model`."""
    built = pipeline.build_model(run, data)
    logger().info("%s: %d parameters, outputs logits", run.config.model.name, built.parameters)
    if built.start is not None:
        logger().info("starts from the weights of champion %s", built.start)
    elif run.config.training.start is not None:
        logger().info("starts from the weights of the seed: %s", _no_start(run, data))
    return built


def _no_start(run: Run, data: LoadedData) -> str:
    """Return why a run with `training.start` does not start from the weights of a champion."""
    day = run.config.dataset.as_of
    if day is not None and champion.current(Store(run.store), data.name) is not None:
        return f"so did the run of {day}, which this one repeats"
    return "the dataset has no champion yet"


@task(name="compile", task_run_name=run_name("compile {run.config.model.name}"), **TASK_DEFAULTS)
def compile_network(run: Run, data: LoadedData, built: BuiltModel) -> CompiledModel:
    """Compile the network; see `nnbuild.pipeline.compile_model`."""
    compiled = pipeline.compile_model(run, data, built)
    logger().info("from_logits=True; %d steps per epoch", compiled.steps_per_epoch)
    return compiled


@task(name="fit", task_run_name=run_name("fit {run.config.model.name}"), retries=0, **TASK_DEFAULTS)
def fit(run: Run, data: LoadedData, compiled: CompiledModel) -> FittedModel:
    """Fit the network; see `nnbuild.pipeline.fit_model`.

    Call it directly: `.submit()` would run it in a thread, which receives no signal, cancellation
    or timeout.
    """
    show_note(describe_data(run, data))
    bar = ProgressBar(artifact_key("nnbuild-fit", run.store, data.name), "Epochs of the fit")
    epochs_key = artifact_key("nnbuild-epochs", run.store, data.name)
    progress = ProgressReporter(bar, epochs_key=epochs_key)
    fitted = pipeline.fit_model(run, data, compiled, progress=progress)
    progress.finish()
    for remark in fitted.remarks:
        logger().warning(remark)
        show_note(remark)
    return fitted


def describe_data(run: Run, data: LoadedData) -> str:
    """Describe the dataset in one line, and say so if it is the fallback."""
    height, width, channels = data.image_shape
    size = f"{height}×{width}" + (" in color" if channels > 1 else "")
    text = f"{data.name}: {_counts(data)} images of {size}, {data.classes} classes"
    if data.unreadable:
        text += f"; {data.unreadable} unreadable pictures skipped"
    requested = run.config.dataset
    if is_fallback(data.name, requested.name, requested.fallback):
        return f"{requested.name} is unavailable; falling back to {text}"
    return text


@task(name="persist history", task_run_name="persist {fitted.epochs} epochs", **TASK_DEFAULTS)
def persist_history(run: Run, fitted: FittedModel) -> HistoryTable:
    """Write the History table; see `nnbuild.pipeline.persist_history`."""
    history = pipeline.persist_history(run, fitted)
    logger().info("%d epochs, %d rows", fitted.epochs, history.rows)
    return history


@task(name="export", task_run_name=run_name("export {run.config.model.name}"), **TASK_DEFAULTS)
def export(run: Run, data: LoadedData, fitted: FittedModel) -> ExportedModel:
    """Export the network to ONNX; see `nnbuild.pipeline.export_model`."""
    exported = pipeline.export_model(run, data, fitted)
    if exported.path is None:
        logger().warning("not exported to ONNX: %s; scoring will use Keras", exported.remark)
    else:
        difference = exported.largest_difference
        logger().info("exported to ONNX; logits differ from Keras by at most %.1e", difference)
    return exported


@task(name="evaluate", task_run_name=run_name("evaluate on {data.name}"), **TASK_DEFAULTS)
def evaluate(run: Run, data: LoadedData, fitted: FittedModel) -> Evaluated:
    """Evaluate the network on the test images; see `nnbuild.pipeline.evaluate_model`."""
    evaluated = pipeline.evaluate_model(run, data, fitted)
    rows = [{"metric": name, "value": value} for name, value in evaluated.metrics.items()]
    show_table(
        artifact_key("nnbuild-metrics", run.store, data.name),
        rows,
        f"Metrics on the test images of {data.name}",
    )
    logger().info(
        "test accuracy %.4f, test loss %.4f", evaluated.test_accuracy, evaluated.test_loss
    )
    return evaluated


@task(
    name="calibrate", task_run_name=run_name("calibrate {run.config.model.name}"), **TASK_DEFAULTS
)
def calibrate(run: Run, data: LoadedData, fitted: FittedModel) -> Calibrated:
    """Fit the temperature of the softmax; see `nnbuild.pipeline.calibrate_model`."""
    calibrated = pipeline.calibrate_model(run, data, fitted)
    logger().info(
        "temperature %.3f: expected calibration error on the test images %.4f, before %.4f",
        calibrated.temperature,
        calibrated.after["test"],
        calibrated.before["test"],
    )
    return calibrated


@task(name="score", task_run_name="score {data.test} images", **TASK_DEFAULTS)
def score(run: Run, data: LoadedData, fitted: FittedModel) -> Scored:
    """Write predictions for the test images; see `nnbuild.pipeline.score_test_set`."""
    scored = pipeline.score_test_set(run, data, fitted)
    logger().info("%d rows of probabilities in %.2f s", scored.rows, scored.seconds)
    return scored


@task(name="decide", task_run_name="decide on {run.run_id}", **TASK_DEFAULTS)
def decide(run: Run, data: LoadedData) -> Decided:
    """Compare the run with the champion; see `nnbuild.pipeline.decide`."""
    decided = pipeline.decide(run, data)
    show_decision(run, data, decided)
    with outward("the remark on the name of the dataset"):
        if (remark := pipeline.shared_name(run, decided)) is not None:
            warn(remark)
    return decided


def show_decision(run: Run, data: LoadedData, decided: Decided) -> None:
    """Log a decision of the gate, and show it in a table."""
    decision = "promoted" if decided.promote else "not promoted"
    logger().info("%s: %s", decision, decided.reason)
    values: dict[str, object] = {
        "decision": decision,
        "outcome": decided.outcome,
        "reason": decided.reason,
        "champion": decided.champion or "none",
    }
    values |= {
        name: rounded(value) for name, value in decided.figures.items() if name != "promoted"
    }
    rows = [{"name": name, "value": value} for name, value in values.items()]
    show_table(artifact_key("nnbuild-decision", run.store, data.name), rows, decided.reason)


@decide.on_rollback
def revoke_decision(publication: Transaction) -> None:
    """Revoke the decision after a failed commit; see `nnbuild.pipeline.revoke_decision`."""
    pipeline.revoke_decision(publication.get("run"))


@task(name="report", task_run_name=run_name("report on {data.name}"), **TASK_DEFAULTS)
def report(run: Run, data: LoadedData) -> Reported:
    """Write the HTML report; see `nnbuild.pipeline.write_report`."""
    reported = pipeline.write_report(run, data)
    logger().info("report.html is written")
    with outward("the charts of the report"):
        _show_charts(run, data)
    return reported


def _show_charts(run: Run, data: LoadedData) -> None:
    marks = (
        "circle: best epoch; dashed line: restored epoch"
        if run.config.model.ensemble_size == 1
        else "one line for each network"
    )
    for metric in ("loss", "accuracy"):
        if (chart := pipeline.curve_picture(run, metric)) is not None:
            description = f"{metric.capitalize()} by epoch; {marks}"
            show_image(artifact_key(f"nnbuild-{metric}", run.store, data.name), chart, description)
    confusion = pipeline.confusion_picture(run, data)
    key = artifact_key("nnbuild-confusion", run.store, data.name)
    show_image(key, confusion, "Confusion matrix on the test images")


@task(name="commit", task_run_name="commit {run.run_id}", **retry_after(1, 1))
def commit(run: Run) -> Committed:
    """Commit the run; see `nnbuild.pipeline.commit.commit_run`."""
    committed = commit_run(run)
    logger().info("run %s is committed", run.run_id)
    for display in active_displays():
        display.committed(run.run_id)
    with outward("the report of the commit"):
        manifest = Store(run.store).manifest(run.run_id)
        _notify(run, manifest)
        dataset = manifest.row.dataset
        key = artifact_key("nnbuild-files", run.store, dataset)
        show_markdown(key, links(run, committed), f"Output files of run {run.run_id}")
        key = artifact_key("nnbuild-report", run.store, dataset)
        show_markdown(key, headline(run, manifest), f"Summary of run {run.run_id}")
    return committed


_CHAMPION_EVENTS = {
    "promoted": PROMOTED,
    "rejected": REJECTED,
    "not-enough-evidence": REJECTED,
}
"""Event of each outcome of the gate that is a verdict; the other outcomes emit no event."""


def _notify(run: Run, manifest: Manifest) -> None:
    """Emit the events of a committed run and, after a promotion, call the webhook."""
    row, decided = manifest.row, manifest.steps.decide
    names = ("dataset", "model", "seed", "epochs", "test_accuracy", "test_loss")
    values = {name: getattr(row, name) for name in names}
    if decided is None or decided.outcome is None:
        emit_run_event(COMMITTED, run.run_id, values)
        return
    verdict = {"outcome": decided.outcome, "reason": decided.reason}
    emit_run_event(COMMITTED, run.run_id, values | verdict)
    event = _CHAMPION_EVENTS.get(decided.outcome)
    if event is not None:
        values = {"dataset": row.dataset, "champion": decided.champion, **decided.figures}
        emit_run_event(event, run.run_id, values | verdict)
    if event == PROMOTED:
        send_webhook(
            f"{row.model} on {row.dataset} is the new champion: "
            f"test accuracy {row.test_accuracy:.4f}; {decided.reason}",
            event=PROMOTED,
            run_id=run.run_id,
            store=run.store,
            dataset=row.dataset,
            outcome=decided.outcome,
            test_accuracy=row.test_accuracy,
        )


def headline(run: Run, manifest: Manifest) -> str:
    """Return a summary of a committed run as Markdown: metrics, decision, metadata, report."""
    row, metrics = manifest.row, manifest.steps.evaluate_model.metrics
    decided = manifest.steps.decide
    cells = [
        (each.title, f"{metrics[each.name]:.4f}")
        for each in SUMMARY_METRICS
        if each.name in metrics
    ]
    cells += [("decision", decided.reason)] if decided else []
    rows = [(name, markdown_text(value)) for name, value in [*cells, *facts(manifest)]]
    rows.append(("report", store_link(run.store, f"runs/{run.run_id}/report.html")))
    accuracy = f"test accuracy {row.test_accuracy:.2%}"
    title = f"{markdown_text(row.model)} on {markdown_text(str(row.dataset))}: {accuracy}"
    return f"## {title}\n\n| | |\n| --- | --- |\n{_table_rows(rows)}\n"


def links(run: Run, committed: Committed) -> str:
    """Return the paths of a committed run's files as a Markdown table."""
    paths = {"manifest": committed.manifest, "model": committed.model, **committed.tables}
    rows = [(name, store_link(run.store, path)) for name, path in paths.items() if path]
    return f"| output | path |\n| --- | --- |\n{_table_rows(rows)}\n"


def _table_rows(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows)
