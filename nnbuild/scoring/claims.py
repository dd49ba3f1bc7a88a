"""Keep two jobs from doing the same work: locks on input and output, search for earlier jobs."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from nnbuild.data.streams import ImageStream, complete_identity, identity_of
from nnbuild.errors import (
    AlreadyScoredError,
    BeingScoredError,
    ConfigError,
    LockedError,
    StoreError,
)
from nnbuild.scoring import outputs
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.shards import have_files_changed, plan
from nnbuild.store import Store, locks
from nnbuild.store.filesystem import os_errors_as_store_errors, read_json
from nnbuild.store.ids import input_lock_name, is_run_id
from nnbuild.store.json_models import Moment, read_model
from nnbuild.store.locks import Holder

if TYPE_CHECKING:
    from nnbuild.scoring.job import Job

# Without the shadow: a new challenger must not make a job score its input again.
_ROW_SETTINGS = (
    "input",
    "output",
    "keep",
    "id_column",
    "image_column",
    "label_column",
    "pixel_max",
    "logits",
    "top_k",
    "where",
    "calibrated",
    "coverage",
    "energy",
    "engine",
)

_RECORD_KEYS = ("config", "model_digest", "input", "code_version")


class _JobRow(BaseModel):
    """The row of a job in the table `score_jobs`."""

    model_config = ConfigDict(extra="allow")
    started_at: Moment
    finished_at: Moment
    # An earlier version that began this commit did not write these.
    day: date | None = None
    identifier: str | None = None
    input_digest: str | None = None
    shadow_run_id: str | None = None


class JobManifest(BaseModel):
    """The part of a job's manifest that is read again.

    Attributes:
        row: The job's row in the table `score_jobs`.
        config: Settings of the job.
        input: Identity of the input, from `nnbuild.data.streams.complete_identity`.
    """

    row: _JobRow
    config: dict[str, Any]
    input: list[Any]


@contextmanager
def claimed(job: "Job") -> Iterator[None]:
    """Lock the input and the output of a job while the block runs.

    Raises:
        BeingScoredError: Another job is scoring the input with the same model and settings.
        AlreadyScoredError: Another job has scored it, and this job has `once` set.
        LockedError: Another job is writing to the output.
        ConfigError: The output of a new job is not empty.
        StoreError: Another program wrote to the output since the job was stopped.
    """
    record = {"score_id": job.score_id, "store": str(job.store.root), "input": job.config.input}
    with ExitStack() as claims:
        claims.enter_context(locks.claim(_input_lock(job), record, _being_scored))
        require_unscored(job)
        if (output := job.config.output) is not None:
            lock = outputs.lock_file(outputs.location(output))
            claims.enter_context(locks.claim(lock, record, lambda holder: in_use(output, holder)))
            _require_free(job, output)
        yield


def require_unclaimed(job: "Job") -> None:
    """Refuse a new job that `claimed` would refuse, before any of its files is written.

    Raises:
        BeingScoredError: Another job is scoring the input with the same model and settings.
        AlreadyScoredError: Another job has scored it, and this job has `once` set.
        LockedError: Another job is writing to the output.
        ConfigError: The output is not empty.
    """
    if (holder := locks.holder(_input_lock(job))) is not None:
        raise _being_scored(holder)
    require_unscored(job)
    if (output := job.config.output) is not None:
        if (holder := output_holder(output)) is not None:
            raise in_use(output, holder)
        _require_free(job, output)


def require_unscored(job: "Job") -> None:
    """Refuse a job with `once` set if another job has scored the same input.

    Raises:
        AlreadyScoredError: Another job has committed the same rows.
    """
    if not job.once:
        return
    before = scored_as(job.store, job.config, job.model.digest, job.source)
    if before is not None:
        raise AlreadyScoredError(
            f"scoring job {before} has already scored {job.config.input} with this model", before
        )


def output_holder(output: str) -> Holder | None:
    """Return the process that is writing to this output; None if there is none."""
    return locks.holder(outputs.lock_file(outputs.location(output)))


def in_use(output: str, holder: Holder) -> LockedError:
    """Return the error that names the job which is writing to an output."""
    score_id, root = holder.record.get("score_id"), holder.record.get("store")
    job = f"scoring job {score_id} of store {root}" if score_id else "another job"
    return LockedError(
        f"output {output}: {job} ({holder.process}) is writing there; "
        "wait for it to end, or choose another folder"
    )


def _input_lock(job: "Job") -> Path:
    """Return the lock file shared by jobs that would write the same rows to the same store."""
    return job.folder.with_name(input_lock_name(fingerprint(job)))


def _being_scored(holder: Holder) -> BeingScoredError:
    score_id, address = holder.record.get("score_id"), holder.record.get("input", "this input")
    job = f"scoring job {score_id}" if score_id else "another job"
    return BeingScoredError(
        f"{job} ({holder.process}) is scoring {address} with the same model and settings; "
        "wait for it to end, or stop it"
    )


def _require_free(job: "Job", output: str) -> None:
    if outputs.is_mount_point(outputs.location(output)):
        raise ConfigError(
            f"output {output}: the root of a mounted disk, which cannot be replaced by the rows of "
            "the job; choose a folder in it",
            setting="output",
            value=output,
        )
    if not outputs.is_taken(outputs.location(output), job.score_id):
        return
    if job.is_new:
        raise ConfigError(
            f"output {output}: not empty; choose a new folder", setting="output", value=output
        )
    raise StoreError(
        f"output {output}: no longer empty since the job was stopped; move its contents away"
    )


def candidates(store: Store, config: ScoreConfig) -> list[dict[str, Any]]:
    """Return the committed jobs with the same input address, oldest first."""
    columns = ["model_digest", "input"]
    jobs: list[dict[str, Any]] = store.read_table("score_jobs", None, columns).to_pylist()
    return [each for each in jobs if each["input"] == config.input]


def scored_as(
    store: Store, config: ScoreConfig, model_digest: str, source: ImageStream
) -> str | None:
    """Return the newest committed job that wrote the same rows.

    Args:
        store: Store to search.
        config: Settings of the job.
        model_digest: SHA-256 of the model file.
        source: The input.
    """
    settings = config.model_dump(mode="json")
    identity = cache(lambda: _identity_now(source))
    for each in reversed(candidates(store, config)):
        if each["model_digest"] != model_digest:
            continue
        path = store.root / "scores" / each["score_id"] / "manifest.json"
        try:
            manifest = read_model(path, JobManifest, "the manifest of a scoring job")
        except StoreError:
            if each["score_id"] in store.score_ids():
                raise
            continue  # deleted in the meantime
        if (
            all(
                manifest.config.get(name, _default(name)) == settings[name]
                for name in _ROW_SETTINGS
            )
            and manifest.input == identity()
        ):
            return str(each["score_id"])
    return None


def _identity_now(source: ImageStream) -> list[list[Any]]:
    states = source.states(chunk.numbers for chunk in source.chunks())
    return complete_identity(identity_of(source), states)


def _default(name: str) -> Any:
    """Return the value of a setting in jobs of versions before it was added."""
    return ScoreConfig.model_fields[name].default


def fingerprint(job: "Job") -> str:
    """Return a digest that is equal for jobs that would write the same rows."""
    config = job.config.model_dump(mode="json")
    key = [{name: config[name] for name in _ROW_SETTINGS}, job.model.digest, job.identity]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def waiting_job(job: "Job", *, any_shadow: bool = False) -> str | None:
    """Return the newest stopped job that can be resumed in place of a new one.

    It has the same settings, model, input and code, and no process works on it. The files that it
    has read are unchanged.

    Args:
        job: The new job.
        any_shadow: Whether the other job may have another shadow, because this one has the newest.
    """
    staging, record = job.folder.parent, _comparable(job.record(), any_shadow=any_shadow)
    if not staging.is_dir():
        return None
    with os_errors_as_store_errors(f"list {staging}"):
        names = [path.name for path in staging.iterdir() if path.name.startswith("score-")]
    ids = {name for each in names if is_run_id(name := each.removeprefix("score-"))}
    for score_id in sorted(ids - set(job.store.score_ids()), reverse=True):
        folder = staging / f"score-{score_id}"
        try:
            other = read_json(folder / "job.json")
        except StoreError:
            continue
        if not isinstance(other, dict):
            continue
        if (
            _comparable(other, any_shadow=any_shadow) == record
            and not locks.is_held(folder)
            and not have_files_changed(
                job.source, plan(job.source.chunks(), job.config.shard_rows), folder
            )
        ):
            return score_id
    return None


def _comparable(record: dict[str, Any], *, any_shadow: bool) -> dict[str, Any]:
    """Return what the records of two jobs must have in common."""
    kept = {name: record.get(name) for name in _RECORD_KEYS}
    config = kept["config"]
    if isinstance(config, dict):
        # The bytes do not depend on the threads; after a lack of memory there may be fewer.
        excluded = {"threads", "shadow"} if any_shadow else {"threads"}
        kept["config"] = {name: config[name] for name in config if name not in excluded}
    return kept
