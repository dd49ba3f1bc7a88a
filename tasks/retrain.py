"""Load: the dataset, verified and as Parquet."""

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from prefect import task
from prefect.transactions import Transaction

from nnbuild import pipeline
from nnbuild.errors import CheckError
from nnbuild.pipeline import commit as committing
from nnbuild.pipeline.reporting import write_report
from nnbuild.report.metadata import facts
from nnbuild.runtime.progress import NullProgress
from nnbuild.runtime.text import markdown_code, markdown_text
from nnbuild.store import Run, Store
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
    STEP,
    can_be_retried,
    logger,
    outward,
    rounded,
    run_name,
    show_markdown,
    show_picture,
    show_table,
)
from tasks.events import CHECK_FAILED, COMMITTED, PROMOTED, REJECTED, announce, notify
from tasks.progress import Aside, ProgressBar, displays


def _downloading(file: str, done: int, total: int | None) -> None:
    for display in displays():
        display.download(file, done, total)


@task(
    name="load",
    task_run_name=run_name("load {run.config.dataset.name}"),
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=can_be_retried,
    **STEP,
)
def load(run: Run) -> LoadedData:
    """Read the dataset of a run; see `nnbuild.pipeline.load_data`."""
    data = pipeline.load_data(run, progress=_downloading)
    logger().info("%s: %s images from %s", data.name, _counts(data), data.source)
    return data


def _counts(data: LoadedData) -> str:
    if data.validation:
        return f"{data.train:,} training, {data.validation:,} validation and {data.test:,} test"
    return f"{data.train:,} training and {data.test:,} test"


def told(run: Run, data: LoadedData) -> str:
    """What a person should know about the data: above all, when it is not what was asked for."""
    height, width, channels = data.image_shape
    size = f"{height}×{width}" + (" in colour" if channels > 1 else "")
    text = f"{data.name}: {_counts(data)} images of {size}, {data.classes} classes"
    if run.config.dataset.fallback == data.name != run.config.dataset.name:
        return f"NOT {run.config.dataset.name}, which cannot be had here. Falling back to {text}"
    return text


@task(name="build", task_run_name=run_name("build {run.config.model.name}"), **STEP)
def build(run: Run, data: LoadedData, checked: CheckedData) -> BuiltModel:  # noqa: ARG001  (it waits for the checks)
    """Build the network of a run; see `nnbuild.pipeline.build_model`."""
    built = pipeline.build_model(run, data)
    logger().info("%s: %d parameters, logits out", run.config.model.name, built.parameters)
    return built


@task(name="calibrate", task_run_name=run_name("calibrate {run.config.model.name}"), **STEP)
def calibrate(run: Run, data: LoadedData, fitted: FittedModel) -> Calibrated:
    """Calibrate the network of a run; see `nnbuild.pipeline.calibrate_model`."""
    calibrated = pipeline.calibrate_model(run, data, fitted)
    logger().info(
        "temperature %.3f, expected calibration error on the test images %.4f, before %.4f",
        calibrated.temperature,
        calibrated.after["test"],
        calibrated.before["test"],
    )
    return calibrated


@task(name="check", task_run_name=run_name("check {data.name}"), **STEP)
def check(run: Run, data: LoadedData) -> CheckedData:
    """Check the data of a run; see `nnbuild.pipeline.check_data`."""
    try:
        checked = pipeline.check_data(run, data)
    except CheckError as error:
        announce(
            CHECK_FAILED,
            run.run_id,
            {"dataset": data.name, "digest": data.digest, "reason": str(error)},
        )
        raise
    show_table(
        "nnbuild-data-checks",
        (each.model_dump() for each in checked.checks),
        f"Checks on {data.name}",
    )
    for each in checked.checks:
        if not each.passed:
            logger().warning(
                "%s: %s, expected %s. %s", each.name, each.measured, each.bound, each.detail
            )
    return checked


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


@task(name="compile", task_run_name=run_name("compile {run.config.model.name}"), **STEP)
def compile_network(run: Run, data: LoadedData, built: BuiltModel) -> CompiledModel:
    """Compile the network of a run; see `nnbuild.pipeline.compile_model`."""
    compiled = pipeline.compile_model(run, data, built)
    logger().info("from_logits=True; %d steps an epoch", compiled.steps_per_epoch)
    return compiled


@task(name="decide", task_run_name="decide on {run.run_id}", **STEP)
def decide(run: Run, data: LoadedData, evaluated: Evaluated, scored: Scored) -> Decided:  # noqa: ARG001  (it waits)
    """Hold a run against the champion; see `nnbuild.pipeline.decide`."""
    decided = pipeline.decide(run, data)
    logger().info("%s: %s", "promoted" if decided.promote else "not promoted", decided.reason)
    told: dict[str, object] = {
        "decision": "promoted" if decided.promote else "not promoted",
        "reason": decided.reason,
    }
    told |= {"champion": decided.champion or "none"}
    told |= {name: rounded(value) for name, value in decided.figures.items() if name != "promoted"}
    show_table(
        "nnbuild-decision",
        [{"figure": name, "value": value} for name, value in told.items()],
        decided.reason,
    )
    return decided


@decide.on_rollback
def withdraw(publication: Transaction) -> None:
    """The commit behind it failed: what was decided is taken back; see `nnbuild.pipeline.revoke_decision`."""
    pipeline.revoke_decision(publication.get("run"))


@task(name="evaluate", task_run_name=run_name("evaluate on {data.name}"), **STEP)
def evaluate(run: Run, data: LoadedData, fitted: FittedModel) -> Evaluated:
    """Evaluate the network of a run; see `nnbuild.pipeline.evaluate_model`."""
    evaluated = pipeline.evaluate_model(run, data, fitted)
    rows = [{"metric": name, "value": value} for name, value in evaluated.metrics.items()]
    show_table("nnbuild-metrics", rows, f"Metrics on the test images of {data.name}")
    logger().info(
        "test accuracy %.4f, test loss %.4f", evaluated.test_accuracy, evaluated.test_loss
    )
    return evaluated


@task(name="export", task_run_name=run_name("export {run.config.model.name}"), **STEP)
def export(run: Run, data: LoadedData, fitted: FittedModel) -> ExportedModel:
    """Export the network of a run; see `nnbuild.pipeline.export_model`."""
    exported = pipeline.export_model(run, data, fitted)
    if exported.path is None:
        logger().warning("not exported to ONNX: %s; scoring will use Keras", exported.remark)
    else:
        logger().info(
            "exported to ONNX; logits within %.1e of Keras's", exported.largest_difference
        )
    return exported


_SECONDS_BETWEEN_TABLES = 10.0
_SECONDS_BETWEEN_UPDATES = 2.0


class _Watch(NullProgress):
    """Passes on what the fit says: to the displays at once, to the server's database only so often."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._table_at = self._progress_at = time.monotonic()
        self._bar = ProgressBar("nnbuild-fit", "Epochs of the fit")
        self._aside = Aside()

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        for display in displays():
            display.step(epoch, epochs, done, steps, metrics)
        if time.monotonic() - self._progress_at > _SECONDS_BETWEEN_UPDATES:
            self._progress_at = time.monotonic()
            self._aside.say(partial(self._bar.show, 100 * (epoch - 1 + done / steps) / epochs))

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger().info("epoch %d/%d  %s  %.1f s", epoch, epochs, figures, seconds)
        for display in displays():
            display.epoch(epoch, epochs, metrics, seconds)
        figures_of = {
            name: rounded(value) for name, value in (metrics | {"seconds": seconds}).items()
        }
        self._rows.append({"epoch": epoch, **figures_of})
        if time.monotonic() - self._table_at > _SECONDS_BETWEEN_TABLES:
            self._table_at = time.monotonic()
            self._aside.say(partial(_show, list(self._rows)))

    def end(self) -> None:
        self._aside.conclude(partial(_show, self._rows))
        self._aside.conclude(partial(self._bar.show, 100.0))


def _show(rows: list[dict[str, Any]]) -> None:
    if rows:
        show_table("nnbuild-epochs", rows, "Loss and metrics of each epoch")


@task(name="fit", task_run_name=run_name("fit {run.config.model.name}"), retries=0, **STEP)
def fit(run: Run, data: LoadedData, compiled: CompiledModel) -> FittedModel:
    """Fit the network of a run; see `nnbuild.pipeline.fit_model`.

    Call it directly: through `.submit()` it would sit in a thread, where no signal, cancel or timeout reaches it.
    """
    for display in displays():
        display.note(told(run, data))
    watch = _Watch()
    fitted = pipeline.fit_model(run, data, compiled, progress=watch)
    watch.end()
    for remark in fitted.remarks:
        logger().warning(remark)
        for display in displays():
            display.note(remark)
    return fitted


@task(name="persist history", task_run_name="persist {fitted.epochs} epochs", **STEP)
def persist_history(run: Run, fitted: FittedModel) -> HistoryTable:
    """Close the history table of a run; see `nnbuild.pipeline.persist_history`."""
    history = pipeline.persist_history(run, fitted)
    logger().info("%d epochs, %d rows", fitted.epochs, history.rows)
    return history


@task(name="report", task_run_name=run_name("report on {data.name}"), **STEP)
def report(run: Run, data: LoadedData, calibrated: Calibrated, decided: Decided) -> Reported:  # noqa: ARG001  (it waits)
    """Write the report of a run; see `nnbuild.pipeline.reporting.write_report`."""
    reported = write_report(run, data)
    logger().info("report.html is written")
    with outward("the pictures of the report"):
        _show_pictures(run, data)
    return reported


def _show_pictures(run: Run, data: LoadedData) -> None:
    for metric in ("loss", "accuracy"):
        if (curve := pipeline.curve_picture(run, metric)) is not None:
            told = f"{metric.capitalize()} by epoch; the ring is the best, the dashes the kept one"
            show_picture(f"nnbuild-{metric}", curve, told)
    confusion = pipeline.confusion_picture(run, data)
    show_picture("nnbuild-confusion", confusion, "Confusion matrix on the test images")


@task(name="score", task_run_name="score {data.test} images", **STEP)
def score(run: Run, data: LoadedData, fitted: FittedModel) -> Scored:
    """Score the test images of a run; see `nnbuild.pipeline.score_test_set`."""
    scored = pipeline.score_test_set(run, data, fitted)
    logger().info("%d rows of probabilities in %.2f s", scored.rows, scored.seconds)
    return scored
