"""The end of a run: its record is put together from what the steps have kept, and everything is moved at once."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnbuild import machine, schemas, steps
from nnbuild.errors import NnbuildError
from nnbuild.results import (
    BuiltModel,
    CheckedData,
    Committed,
    CompiledModel,
    Evaluated,
    FittedModel,
    HistoryTable,
    LoadedData,
    Result,
    Scored,
)
from nnbuild.store import commit
from nnbuild.store.files import write_json
from nnbuild.store.run import Run
from nnbuild.store.store import Store

_RECORDED: dict[str, type[Result]] = {
    "load_data": LoadedData,
    "check_data": CheckedData,
    "build_model": BuiltModel,
    "compile_model": CompiledModel,
    "fit_model": FittedModel,
    "persist_history": HistoryTable,
    "evaluate_model": Evaluated,
    "score_test_set": Scored,
}


def commit_run(run: Run, *, now: datetime | None = None) -> Committed:
    """Commit a run whose steps are done. What was begun by a commit that was killed is finished.

    Args:
        run: in staging.
        now: aware time of the end; the clock's if not given.
    """
    return _commit(run, None, now)


def commit_failure(run: Run, error: Exception, *, now: datetime | None = None) -> Committed:
    """Commit a run that failed for good: its `runs` row with the reason, and the history that it has."""
    told = str(error) if isinstance(error, NnbuildError) else f"{type(error).__name__}: {error}"
    return _commit(run, " ".join(told.split()), now)


def manifest_of(run: Run, *, error: str | None = None, now: datetime | None = None) -> dict[str, Any]:
    """The manifest of a run as it stands now, without the digests of the files that a commit adds."""
    return _manifest(run, _records(run), error, now or datetime.now(UTC))


def _records(run: Run) -> dict[str, Result]:
    return {name: record for name, kind in _RECORDED.items() if (record := run.recall(name, kind)) is not None}


def _commit(run: Run, error: str | None, now: datetime | None) -> Committed:
    if not commit.is_ready(run):
        commit.make_ready(
            run, manifest_of(run, error=error, now=now), _files(run, failed=error is not None), _tables(run)
        )
    row = commit.staged_row(run)
    tables = sorted(path.name for path in (run.folder / "commit" / "tables").iterdir())
    commit.publish(run, _dataset_move(run, run.recall("load_data", LoadedData)))
    store = Store(run.root)
    place = run.root / "runs" / run.run_id
    return Committed(
        run_id=run.run_id,
        status=row["status"],
        error=row["error"],
        manifest=run.relative(place / "manifest.json"),
        tables={name: run.relative(store.partition(name, run.run_id)) for name in tables},
        model=run.relative(place / "model.keras") if (place / "model.keras").exists() else None,
    )


def _dataset_move(run: Run, data: Result | None) -> tuple[Path, Path] | None:
    if not isinstance(data, LoadedData):
        return None
    return steps.staged_dataset(run), Store(run.root).dataset_folder(data.name, data.digest)


def _files(run: Run, *, failed: bool) -> dict[str, Path]:
    config = run.folder / "config.json"
    write_json(config, run.config.model_dump(mode="json"))
    wanted = {"config.json": config, "report.html": run.folder / "report.html"}
    if not failed:
        wanted["model.keras"] = run.folder / "model" / "model.keras"
    logs = run.folder / "tensorboard"
    wanted |= {path.relative_to(run.folder).as_posix(): path for path in logs.rglob("*") if path.is_file()}
    return {name: path for name, path in wanted.items() if path.exists()}


def _tables(run: Run) -> dict[str, Path]:
    staged = {name: steps.staged_table(run, name) for name in schemas.TABLES}
    return {name: path for name, path in staged.items() if path.exists()}


def _manifest(run: Run, records: dict[str, Any], error: str | None, now: datetime) -> dict[str, Any]:
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
    data, fitted, evaluated = (records.get(name) for name in ("load_data", "fit_model", "evaluate_model"))
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
        "epochs": fitted.epochs if fitted else steps.epochs_on_disk(run),
        "test_accuracy": evaluated.test_accuracy if evaluated else None,
        "test_loss": evaluated.test_loss if evaluated else None,
        "promoted": False,
        "flow_run_id": run.record.get("flow_run_id"),
        "code_version": run.record["code_version"],
        "config": run.config.model_dump_json(),
    }
