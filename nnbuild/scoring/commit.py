"""The end of a scoring job: its shards are moved at once, and its row in `score_runs` is written last."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nnbuild.runtime import environment, fault_injection
from nnbuild.scoring import claims, outputs
from nnbuild.scoring.drifting import Compared, compared, drift_rows, require_brightness
from nnbuild.scoring.jobs import Job
from nnbuild.scoring.kept_columns import require_known_types_in_files
from nnbuild.scoring.shards import Shard
from nnbuild.store import schemas
from nnbuild.store.filesystem import publish_dir, read_json, write_json
from nnbuild.store.tables import write_table


class ScoredJob(BaseModel):
    """A job that is committed.

    Attributes:
        run_id: the model's; None for a file.
        rows: of the input that were scored.
        written: of these, those that `where` kept.
        quarantined: rows that could not be scored.
        output: the folder with the rows.
        engine: What ran the model: `onnx` or `keras`.
        engine_reason: Why ONNX Runtime could not; empty if it can.
        drift: what they look like beside what the model was validated on.
    """

    model_config = ConfigDict(frozen=True)
    score_id: str
    run_id: str | None
    rows: int
    written: int
    quarantined: int
    output: str
    engine: str = "onnx"
    engine_reason: str = ""
    drift: Compared = Compared()


def commit_job(job: Job, shards: list[Shard], *, now: datetime | None = None) -> ScoredJob:
    """Commit a job whose shards are made; may be called again until it has happened.

    Args:
        job: In staging, held by `nnbuild.scoring.jobs.working_on`.
        shards: All of its shards.
        now: Aware time of the end; the clock's if not given.

    Raises:
        AlreadyScoredError: Another job has scored the same meanwhile, and this one is to do so once.
        StoreError: The output was taken meanwhile; the job keeps its rows and can be resumed.
    """
    require_brightness(job, shards)
    store, partition = job.store, f"score_id={job.score_id}"
    store.require()
    claims.require_unscored(job)
    output = _output(job)
    manifest = _manifest(job, shards, output, now or datetime.now(UTC))
    ready = job.folder / "manifest" / "manifest.json"
    if not ready.exists():
        write_json(ready, manifest)
    manifest = read_json(ready)
    _leave_only({each.name for each in shards}, job.folder / "rows", job.folder / "quarantine")
    if job.config.output is None:
        _require_known_types(job)
        _move(job.folder / "rows", output)
    else:
        target = outputs.location(job.config.output)
        outputs.publish(job.folder / "rows", target, job.score_id, manifest)
    drift = compared(job, shards)
    _put(
        job,
        "drift",
        schemas.DRIFT,
        drift_rows(job, drift, datetime.fromisoformat(manifest["row"]["finished_at"])),
    )
    fault_injection.failpoint("score:rows")
    _move(job.folder / "quarantine", store.root / "quarantine" / partition)
    _move(job.folder / "manifest", store.root / "scores" / job.score_id)
    fault_injection.failpoint("score:manifest")
    values = dict(manifest["row"])
    for name in ("started_at", "finished_at"):
        values[name] = datetime.fromisoformat(values[name])
    _put(job, "score_runs", schemas.SCORE_RUNS, [values])
    fault_injection.failpoint("score:row")
    shutil.rmtree(job.folder, ignore_errors=True)
    counts = {
        name: sum(getattr(each, name) for each in shards)
        for name in ("rows", "written", "quarantined")
    }
    return ScoredJob(
        score_id=job.score_id,
        run_id=job.model.run_id,
        output=str(output),
        engine=job.model.engine,
        engine_reason=job.model.reason,
        drift=drift,
        **counts,
    )


def _leave_only(names: set[str], *folders: Path) -> None:
    """Remove what a process that was killed had half written beside the shards."""
    for path in (path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        if path.name not in names:
            path.unlink()


def _require_known_types(job: Job) -> None:
    rows = job.folder / "rows"
    paths = sorted(rows.iterdir()) if rows.is_dir() and job.config.keep else []
    require_known_types_in_files(job.store, job.source.schema(), paths)


def _output(job: Job) -> Any:
    if job.config.output is None:
        return job.store.root / "tables" / "scores" / f"score_id={job.score_id}"
    return outputs.shown(job.config.output)


def _manifest(job: Job, shards: list[Shard], output: Any, now: datetime) -> dict[str, Any]:
    return {
        "schema_version": schemas.SCHEMA_VERSION,
        "score_id": job.score_id,
        "row": {
            "run_id": job.model.run_id,
            "model_digest": job.model.digest,
            "input": job.config.input,
            "output": None if job.config.output is None else str(output),
            "rows": sum(each.rows for each in shards),
            "written": sum(each.written for each in shards),
            "quarantined": sum(each.quarantined for each in shards),
            "engine": job.config.engine,
            "temperature": job.temperature,
            "started_at": job.started_at.astimezone(UTC).isoformat(),
            "finished_at": max(now, job.started_at).astimezone(UTC).isoformat(),
        },
        "config": job.config.model_dump(mode="json"),
        "input": job.identity,
        "pixel_scales": job.source.scales(),
        "shards": [each.model_dump(exclude={"summary"}) for each in shards],
        "code_version": environment.code_version(),
        "packages": environment.packages(),
        "machine": environment.description(),
    }


def _put(job: Job, name: str, schema: Any, rows: list[dict[str, Any]]) -> None:
    """A job's part of a table; no part if it has no rows."""
    if rows:
        part = job.folder / name / "part-0.parquet"
        write_table(part, schemas.table_of(schema, rows), schema)
        _move(part.parent, job.store.root / "tables" / name / f"score_id={job.score_id}")


def _move(source: Path, target: Any) -> None:
    if source.is_dir():
        publish_dir(source, target)
