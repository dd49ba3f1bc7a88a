"""Commit a scoring job: check for drift, publish its shards, and add its row to `score_jobs` last.

A job becomes visible with that row. Until then the commit can be repeated after a crash.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from nnbuild.data.file_states import FileStates
from nnbuild.data.streams import complete_identity
from nnbuild.errors import DataError, StoreError
from nnbuild.evaluation.drift import Drift, Summary, compare
from nnbuild.runtime import environment, fault_injection
from nnbuild.scoring import claims, outputs, shadow
from nnbuild.scoring.job import Job
from nnbuild.scoring.selection import require_known_types_in_files
from nnbuild.scoring.shards import Shard
from nnbuild.store import schemas
from nnbuild.store.filesystem import publish_dir, read_json, write_json
from nnbuild.store.json_models import read_model
from nnbuild.store.tables import write_table

_MIN_IMAGES = 16  # below this, the mean brightness says nothing about the scale of the pixels


class DriftReport(BaseModel):
    """Comparison of the scored rows with the reference of the model.

    Attributes:
        measures: Both statistics of each measure; empty if nothing could be compared.
        exceeded: Names of the measures with a statistic above its threshold.
        remark: Reason why nothing could be compared; empty otherwise.
    """

    model_config = ConfigDict(frozen=True)
    measures: tuple[Drift, ...] = ()
    exceeded: tuple[str, ...] = ()
    remark: str = ""


def check_drift(job: Job, shards: Sequence[Shard]) -> DriftReport:
    """Compare the scored rows with the reference of the model, from the counts of each shard.

    Args:
        job: The job that made the shards.
        shards: All finished shards.
    """
    reference = job.model.reference.get("calibrated" if job.config.calibrated else "plain")
    if reference is None:
        reason = (
            f"run {job.model.run_id} was made before references were stored"
            if job.model.run_id
            else "a model file has none"
        )
        return DriftReport(remark=f"not measured because there is no reference: {reason}")
    counts = [each.summary for each in shards if each.rows]
    if not counts:
        return DriftReport(remark="not measured: no row was scored")
    scored = reduce(add, (Summary.from_json(each) for each in counts))
    measures = compare(reference, scored, psi=job.config.drift_psi, ks=job.config.drift_ks)
    exceeded = dict.fromkeys(each.measure for each in measures if each.exceeded)
    return DriftReport(measures=tuple(measures), exceeded=tuple(exceeded))


def require_brightness(job: Job, shards: Sequence[Shard]) -> None:
    """Refuse rows so dark or bright that only a different pixel scale explains it.

    Args:
        job: The job, with the limit `max_brightness_ratio`.
        shards: All finished shards.

    Raises:
        DataError: The mean brightness is too far from that of the model's reference.
    """
    reference = job.model.reference.get("plain")
    counts = [Summary.from_json(each.summary) for each in shards if each.rows]
    if reference is None or not counts:
        return
    scored = reduce(add, counts)
    if scored.brightness.sum() < _MIN_IMAGES or not reference.brightness.sum():
        return  # a few images may all be dark
    expected, actual = reference.mean_brightness(), scored.mean_brightness()
    ratio = max(expected, actual) / min(expected, actual)
    if ratio > job.config.max_brightness_ratio:
        raise DataError(
            f"{job.config.input}: mean brightness {actual:.2f} of 255, but {expected:.2f} in the "
            f"validation images of the model: a factor of {ratio:.0f}, expected at most "
            f"{job.config.max_brightness_ratio:g}; rescale the pixels, set pixel_max, or raise "
            "max_brightness_ratio",
            setting="max_brightness_ratio",
            value=job.config.max_brightness_ratio,
        )


def drift_rows(job: Job, report: DriftReport, now: datetime) -> list[dict[str, Any]]:
    """Return the rows of the `drift` table."""
    return [
        {"run_id": job.model.run_id, **each.model_dump(), "measured_at": now}
        for each in report.measures
    ]


class ScoredJob(BaseModel):
    """A committed scoring job.

    Attributes:
        score_id: ID of the job.
        run_id: ID of the run that trained the model; None for a model file.
        rows: Number of scored input rows.
        written: Number of scored rows that passed the `where` filter.
        quarantined: Number of rows that could not be scored.
        output: Folder or URL with the rows.
        engine: Engine that ran the model: `onnx` or `keras`.
        engine_reason: Reason why ONNX Runtime cannot run the model; empty if it can.
        shadow_run_id: ID of the run that scored the same rows as a shadow; None without one.
        drift: Comparison of the scored rows with the validation images of the model.
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
    shadow_run_id: str | None = None
    drift: DriftReport = DriftReport()


def commit_job(job: Job, shards: list[Shard], *, now: datetime | None = None) -> ScoredJob:
    """Commit a job with all its shards; safe to repeat after a crash.

    Args:
        job: Job in staging, locked by `nnbuild.scoring.job.job_context`.
        shards: All finished shards.
        now: Time of the end, with a time zone; the current time by default.

    Raises:
        AlreadyScoredError: Another job has scored the same meanwhile, and the job has `once` set.
        StoreError: Another program wrote to the output meanwhile; the job can be resumed.
    """
    _require_complete(job, shards)
    require_brightness(job, shards)
    store, partition = job.store, f"score_id={job.score_id}"
    store.require()
    claims.require_unscored(job)
    output = _output(job)
    ready = job.folder / "manifest" / "manifest.json"
    if not ready.exists():
        write_json(ready, _manifest(job, shards, output, now or datetime.now(UTC)))
    row = read_model(ready, claims.JobManifest, "the manifest of a scoring job").row
    times = {
        "started_at": datetime.fromisoformat(row.started_at),
        "finished_at": datetime.fromisoformat(row.finished_at),
    }
    folders = [job.folder / name for name in ("rows", "shadow", "quarantine")]
    _leave_only({each.name for each in shards}, *folders)
    _remove_if_empty(job.folder / "quarantine")
    if job.config.output is None:
        _require_known_types(job)
        _move(job.folder / "rows", _table_part(job, "scores"))
        if job.shadow is not None:
            fault_injection.failpoint("score:shadow")
            _move(job.folder / "shadow", _table_part(job, shadow.TABLE))
    else:
        target = outputs.location(job.config.output)
        outputs.publish(job.folder / "rows", target, job.score_id, read_json(ready))
    drift = check_drift(job, shards)
    _put(
        job,
        "drift",
        schemas.DRIFT,
        drift_rows(job, drift, times["finished_at"]),
    )
    fault_injection.failpoint("score:rows")
    _move(job.folder / "quarantine", store.root / "quarantine" / partition)
    _move(job.folder / "manifest", store.root / "scores" / job.score_id)
    fault_injection.failpoint("score:manifest")
    _put(job, "score_jobs", schemas.SCORE_JOBS, [row.model_dump() | times])
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
        shadow_run_id=job.shadow.run_id if job.shadow else None,
        drift=drift,
        **counts,
    )


def _require_complete(job: Job, shards: Sequence[Shard]) -> None:
    """Refuse to commit a part of the rows, whatever made the shards."""
    rows = sum(each.rows + each.quarantined for each in shards)
    if rows != job.total:
        raise StoreError(
            f"the shards of scoring job {job.score_id} have {rows} of {job.total} rows; "
            "this is a bug, please report it"
        )


def _leave_only(names: set[str], *folders: Path) -> None:
    """Remove the partial files that a killed process left next to the shards."""
    for path in (path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        if path.name not in names:
            path.unlink()


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _require_known_types(job: Job) -> None:
    rows = job.folder / "rows"
    paths = sorted(rows.iterdir()) if rows.is_dir() and job.config.keep else []
    require_known_types_in_files(job.store, job.source.schema(), paths)


def _output(job: Job) -> Path | str:
    if job.config.output is None:
        return _table_part(job, "scores")
    return outputs.display_address(job.config.output)


def _manifest(job: Job, shards: list[Shard], output: Path | str, now: datetime) -> dict[str, Any]:
    states = reduce(add, (each.files for each in shards), FileStates())
    identity = complete_identity(job.identity, states)
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
            "day": job.config.day and job.config.day.isoformat(),
            "identifier": job.source.identifier(),
            "input_digest": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
            "shadow_run_id": job.shadow.run_id if job.shadow else None,
        },
        "config": job.config.model_dump(mode="json"),
        "input": identity,
        "pixel_scales": job.source.scales(),
        "shards": [each.model_dump(exclude={"summary"}) for each in shards],
        "code_version": environment.code_version(),
        "packages": environment.packages(),
        "machine": environment.description(),
    }


def _put(job: Job, name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    """Add a job's part to a table, unless it has no rows."""
    if rows:
        part = job.folder / name / "part-0.parquet"
        write_table(part, schemas.table_of(schema, rows), schema)
        _move(part.parent, _table_part(job, name))


def _table_part(job: Job, name: str) -> Path:
    return job.store.root / "tables" / name / f"score_id={job.score_id}"


def _move(source: Path, target: Path) -> None:
    if source.is_dir():
        publish_dir(source, target)
