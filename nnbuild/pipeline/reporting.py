"""Write the page that a run ends in."""

from datetime import UTC, datetime
from typing import Any

from nnbuild.pipeline.data import read_data
from nnbuild.pipeline.step import cached_step, epochs_on_disk, staged_table
from nnbuild.report import artifacts, render
from nnbuild.runtime import environment
from nnbuild.store import schemas
from nnbuild.store.filesystem import write_bytes
from nnbuild.store.manifests import STEPS, Manifest, parse_manifest
from nnbuild.store.run import Run
from nnbuild.store.schemas import STATIC_SCHEMAS, predictions
from nnbuild.store.step_results import FittedModel, LoadedData, Reported, StepResult
from nnbuild.store.tables import read_table


def manifest_of(run: Run, *, error: str | None = None, now: datetime | None = None) -> Manifest:
    """Return the manifest of a run in its present state, without the files that a commit adds."""
    value = _manifest(run, _records(run), error, now or datetime.now(UTC))
    return parse_manifest(value, f"what run {run.run_id} has to commit")


def _records(run: Run) -> dict[str, StepResult]:
    return {
        name: record
        for name, kind in STEPS.items()
        if (record := run.load_result(name, kind)) is not None
    }


def _manifest(
    run: Run, records: dict[str, Any], error: str | None, now: datetime
) -> dict[str, Any]:
    return {
        "schema_version": schemas.SCHEMA_VERSION,
        "run_id": run.run_id,
        "row": _row(run, records, error, now),
        "config": run.config.model_dump(mode="json"),
        "config_digest": run.config.digest(),
        "steps": {name: record.model_dump(mode="json") for name, record in records.items()},
        "seconds": run.seconds(),
        "code_version": run.record["code_version"],
        "packages": environment.packages(),
        "machine": environment.description(),
        "flow_run_id": run.record.get("flow_run_id"),
        "files": {},
    }


def _row(run: Run, records: dict[str, Any], error: str | None, now: datetime) -> dict[str, Any]:
    data, fitted, evaluated = (
        records.get(name) for name in ("load_data", "fit_model", "evaluate_model")
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
        "promoted": records["decide"].promote if error is None and "decide" in records else False,
        "flow_run_id": run.record.get("flow_run_id"),
        "code_version": run.record["code_version"],
        "config": run.config.model_dump_json(),
    }


_SHOWN = ("history", "evaluation", "confusion", "calibration")


@cached_step(Reported)
def write_report(run: Run, data: LoadedData) -> Reported:
    """Write `report.html` from what the run has by now."""
    tables = {name: read_table(staged_table(run, name), STATIC_SCHEMAS[name]) for name in _SHOWN}
    tables["predictions"] = read_table(staged_table(run, "predictions"), predictions(data.classes))
    page = render(manifest_of(run), tables, read_data(run, data).test.images)
    path = run.folder / "report.html"
    write_bytes(path, page.encode())
    return Reported(path=run.relative(path), files=run.digests("report.html"))


def curve_picture(run: Run, metric: str) -> str | None:
    """A metric by epoch, as an SVG that stands alone; None if the run has no such metric."""
    fitted = run.load_result("fit_model", FittedModel)
    history = read_table(staged_table(run, "history"), STATIC_SCHEMAS["history"])
    return artifacts.curve_picture(history, metric, fitted.weights_epoch if fitted else 0)


def confusion_picture(run: Run, data: LoadedData) -> str:
    """The confusion matrix on the test images, as an SVG that stands alone."""
    return artifacts.confusion_picture(
        read_table(staged_table(run, "confusion"), STATIC_SCHEMAS["confusion"]), data.class_names
    )
