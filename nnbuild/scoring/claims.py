"""Locks on the input and the output of a running job, so that no two jobs do the same work."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nnbuild.errors import (
    AlreadyScoredError,
    BeingScoredError,
    ConfigError,
    LockedError,
    StoreError,
)
from nnbuild.scoring import outputs, repeats
from nnbuild.store import locks
from nnbuild.store.ids import input_lock_name
from nnbuild.store.locks import Holder

if TYPE_CHECKING:
    from nnbuild.scoring.job import Job


@contextmanager
def claimed(job: "Job") -> Iterator[None]:
    """Lock the input and the output of a job while the block runs.

    Raises:
        BeingScoredError: Another job is scoring the input with the same model and settings.
        AlreadyScoredError: Another job has done so, and this job has `once` set.
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
        AlreadyScoredError: Another job has done so, and this job has `once` set.
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
    before = repeats.scored_as(job.store, job.config, job.model.digest, job.identity)
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
    return job.folder.with_name(input_lock_name(repeats.fingerprint(job)))


def _being_scored(holder: Holder) -> BeingScoredError:
    score_id, address = holder.record.get("score_id"), holder.record.get("input", "this input")
    job = f"scoring job {score_id}" if score_id else "another job"
    return BeingScoredError(
        f"{job} ({holder.process}) is scoring {address} with the same model and settings; "
        "wait for it to end, or stop it"
    )


def _require_free(job: "Job", output: str) -> None:
    if not outputs.is_taken(outputs.location(output), job.score_id):
        return
    if job.is_new:
        raise ConfigError(f"output {output}: not empty; choose a new folder")
    raise StoreError(
        f"output {output}: no longer empty since the job was stopped; move its contents away"
    )
