"""The manifest of a run: everything that explains it, put together from what the steps have kept."""

from datetime import UTC, datetime
from typing import Any

from nnbuild import machine, schemas
from nnbuild.results import Result
from nnbuild.steps.progress import epochs_on_disk
from nnbuild.store.manifests import STEPS
from nnbuild.store.run import Run


def manifest_of(
    run: Run, *, error: str | None = None, now: datetime | None = None
) -> dict[str, Any]:
    """The manifest of a run as it stands now, without the digests of the files that a commit adds."""
    return _manifest(run, _records(run), error, now or datetime.now(UTC))


def _records(run: Run) -> dict[str, Result]:
    return {
        name: record
        for name, kind in STEPS.items()
        if (record := run.recall(name, kind)) is not None
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
        "packages": machine.packages(),
        "machine": machine.description(),
        "flow_run_id": run.record.get("flow_run_id"),
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
