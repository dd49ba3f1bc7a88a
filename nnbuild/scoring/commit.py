"""The end of a scoring job: its shards are moved at once, and its row in `score_runs` is written last."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import DataError
from nnbuild.evaluation.drift import Drift, Summary, compare
from nnbuild.runtime import environment, fault_injection
from nnbuild.scoring import claims, outputs
from nnbuild.scoring.job import Job
from nnbuild.scoring.kept_columns import require_known_types_in_files
from nnbuild.scoring.shards import Shard
from nnbuild.store import schemas
from nnbuild.store.filesystem import publish_dir, read_json, write_json
from nnbuild.store.tables import write_table

_FEWEST = 16  # images whose mean brightness says something about their scale


class DriftReport(BaseModel):
    """What came of the comparison.

    Attributes:
        measures: both statistics of each measure; empty if nothing could be compared.
        exceeded: names of the measures of which one statistic passed its threshold.
        remark: why nothing could be compared; empty if it was.
    """

    model_config = ConfigDict(frozen=True)
    measures: tuple[Drift, ...] = ()
    exceeded: tuple[str, ...] = ()
    remark: str = ""


def check_drift(job: Job, shards: Sequence[Shard]) -> DriftReport:
    """Hold what was scored against the reference; the same whenever it is asked, since each shard keeps its counts.

    Args:
        job: that the shards are of.
        shards: all of them, finished.
    """
    reference = job.model.reference.get("calibrated" if job.config.calibrated else "plain")
    if reference is None:
        what = (
            f"run {job.model.run_id} is of before references were kept"
            if job.model.run_id
            else "a file has none"
        )
        return DriftReport(remark=f"not measured, for want of a reference: {what}")
    counts = [each.summary for each in shards if each.rows]
    if not counts:
        return DriftReport(remark="not measured: no row was scored")
    scored = reduce(add, (Summary.from_json(each) for each in counts))
    measures = compare(reference, scored, psi=job.config.drift_psi, ks=job.config.drift_ks)
    exceeded = dict.fromkeys(each.measure for each in measures if each.exceeded)
    return DriftReport(measures=tuple(measures), exceeded=tuple(exceeded))


def require_brightness(job: Job, shards: Sequence[Shard]) -> None:
    """Refuse rows that are darker or brighter than any content explains: their scale is another one.

    Args:
        job: Whose `max_brightness_ratio` is the limit.
        shards: All of them, finished.

    Raises:
        DataError: The mean brightness is too far from that of the model's reference.
    """
    reference = job.model.reference.get("plain")
    counts = [Summary.from_json(each.summary) for each in shards if each.rows]
    if reference is None or not counts:
        return
    scored = reduce(add, counts)
    if scored.brightness.sum() < _FEWEST or not reference.brightness.sum():
        return  # a few images may all be dark
    expected, found = reference.mean_brightness(), scored.mean_brightness()
    ratio = max(expected, found) / min(expected, found)
    if ratio > job.config.max_brightness_ratio:
        raise DataError(
            f"{job.config.input}: mean brightness {found:.2f} of 255, the model was validated on "
            f"{expected:.2f}: a factor of {ratio:.0f}, expected at most "
            f"{job.config.max_brightness_ratio:g}; give the pixels on their usual scale, "
            "or --pixel-max, or raise --max-brightness-ratio"
        )


def drift_rows(job: Job, found: DriftReport, now: datetime) -> list[dict[str, Any]]:
    """The rows of the `drift` table."""
    return [
        {"run_id": job.model.run_id, **each.model_dump(), "measured_at": now}
        for each in found.measures
    ]


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
    drift: DriftReport = DriftReport()


def commit_job(job: Job, shards: list[Shard], *, now: datetime | None = None) -> ScoredJob:
    """Commit a job whose shards are made; may be called again until it has happened.

    Args:
        job: In staging, held by `nnbuild.scoring.job.job_context`.
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
    drift = check_drift(job, shards)
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
