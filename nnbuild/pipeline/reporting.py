"""The step that writes the report, and the manifest that the report shows."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from nnbuild.pipeline.data import read_test_data
from nnbuild.pipeline.step import (
    cached_step,
    epochs_on_disk,
    staged_predictions,
    staged_table,
)
from nnbuild.report import page, render
from nnbuild.report.networks import networks_of
from nnbuild.runtime import environment
from nnbuild.store import schemas
from nnbuild.store.filesystem import write_bytes
from nnbuild.store.manifests import Manifest, parse_manifest
from nnbuild.store.run import Run
from nnbuild.store.schemas import STATIC_SCHEMAS
from nnbuild.store.step_results import (
    MANIFEST_STEPS,
    Decided,
    Evaluated,
    FittedModel,
    LoadedData,
    Reported,
    StepResult,
)
from nnbuild.store.tables import read_table

_TABLES = ("history", "evaluation", "confusion", "calibration")


def manifest_of(
    run: Run,
    *,
    error: str | None = None,
    error_type: str | None = None,
    now: datetime | None = None,
) -> Manifest:
    """Return the manifest of a run so far, without the files, whose digests the commit adds.

    Args:
        run: Run in staging.
        error: Reason why the run failed; None if it succeeded.
        error_type: Name of the class of the exception that ended the run, if it failed.
        now: Aware time of the end of the run; the current time if None.
    """
    results = _results(run)
    value = {
        "schema_version": schemas.SCHEMA_VERSION,
        "run_id": run.run_id,
        "row": _row(run, results, error, now or datetime.now(UTC)),
        "error_type": error_type,
        "config": run.config.model_dump(mode="json"),
        "config_digest": run.config.digest(),
        "steps": {name: result.model_dump(mode="json") for name, result in results.items()},
        "seconds": run.seconds(),
        "code_version": run.record["code_version"],
        "packages": environment.packages(),
        "machine": environment.description(),
        "flow_run_id": run.record.get("flow_run_id"),
        "files": {},
    }
    return parse_manifest(value, f"the manifest of run {run.run_id}")


def _results(run: Run) -> dict[str, StepResult]:
    """Return the results of the steps that are done, by the step's name."""
    return {
        name: result
        for name, kind in MANIFEST_STEPS.items()
        if (result := run.load_result(kind)) is not None
    }


def _row(run: Run, results: Mapping[str, Any], error: str | None, now: datetime) -> dict[str, Any]:
    data, fitted, evaluated, decided = (
        results.get(kind.step) for kind in (LoadedData, FittedModel, Evaluated, Decided)
    )
    return {
        "status": "succeeded" if error is None else "failed",
        "error": error,
        "started_at": run.started_at.isoformat(),
        # The clock may have been set back during the run; a run does not end before it began.
        "finished_at": max(now.astimezone(UTC), run.started_at).isoformat(),
        "dataset": data.name if data else None,
        "dataset_digest": data.digest if data else None,
        "model": run.config.model.name,
        "seed": run.config.seed,
        "epochs": fitted.epochs if fitted else epochs_on_disk(run),
        "test_accuracy": evaluated.test_accuracy if evaluated else None,
        "test_loss": evaluated.test_loss if evaluated else None,
        "promoted": bool(decided and decided.promote and error is None),
        "flow_run_id": run.record.get("flow_run_id"),
        "code_version": run.record["code_version"],
        "config": run.config.model_dump_json(),
    }


@cached_step(Reported)
def write_report(run: Run, data: LoadedData) -> Reported:
    """Write `report.html` from the results and tables of the run so far."""
    tables = {name: read_table(staged_table(run, name), STATIC_SCHEMAS[name]) for name in _TABLES}
    tables["predictions"] = staged_predictions(run, data)
    if run.config.dataset.keep:
        tables["slices"] = read_table(staged_table(run, "slices"), STATIC_SCHEMAS["slices"])
    page = render(manifest_of(run), tables, read_test_data(run, data).images)
    path = run.folder / "report.html"
    write_bytes(path, page.encode())
    return Reported(path=run.relative(path), files=run.digests("report.html"))


def curve_picture(run: Run, metric: str) -> str | None:
    """Return a metric by epoch as a self-contained SVG; None if the run has no such metric."""
    fitted = run.load_result(FittedModel)
    if fitted is None:
        return None
    history = read_table(staged_table(run, "history"), STATIC_SCHEMAS["history"])
    networks = networks_of(fitted, run.config.model_dump())
    return page.curve_picture(history, metric, networks, fitted.weights_epoch)


def confusion_picture(run: Run, data: LoadedData) -> str:
    """Return the confusion matrix on the test images as a self-contained SVG."""
    return page.confusion_picture(
        read_table(staged_table(run, "confusion"), STATIC_SCHEMAS["confusion"]), data.class_names
    )
