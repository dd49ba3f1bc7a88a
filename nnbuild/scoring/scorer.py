"""Score an input in one call: create or resume a job, make its shards, and commit it."""

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import ConfigError
from nnbuild.runtime.progress import ProgressCallback
from nnbuild.scoring.commit import ScoredJob, commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.dask import score_on_cluster
from nnbuild.scoring.division import division_of
from nnbuild.scoring.job import Job, open_job, require_unchanged, resume_job
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input
from nnbuild.scoring.processes import score_in_processes
from nnbuild.scoring.shards import Shard


class JobHandle(BaseModel):
    """Reference to an open job, small enough to pass between tasks.

    Attributes:
        root: Root of the store.
        score_id: ID of the job.
        rows: Number of input rows.
        is_new: Whether the job was created now, and not resumed.
        once: Whether to stop if another job has scored the same.
    """

    model_config = ConfigDict(frozen=True)
    root: str
    score_id: str
    rows: int
    is_new: bool = False
    once: bool = False

    def open(self) -> Job:
        """Open the job again, and verify its model and input."""
        job = resume_job(self.score_id, self.root)
        return replace(job, is_new=self.is_new, once=self.once)


def open_or_resume(
    config: ScoreConfig | None,
    store: Path | str | None,
    resume: str | None,
    *,
    once: bool = False,
) -> JobHandle:
    """Create a job or resume one; see `score`."""
    job = _open_or_resume(config, store, resume, once=once)
    return JobHandle(
        root=str(job.store.root),
        score_id=job.score_id,
        rows=job.total,
        is_new=job.is_new,
        once=once,
    )


def make_shards(
    job: Job, address: str | None, progress: ProgressCallback | None = None
) -> list[Shard]:
    """Make the missing shards on this machine, or on the Dask cluster at an address."""
    if address is not None:
        return score_on_cluster(job, address, progress)
    division = division_of(job)
    if division.processes == 1:
        return score_input(job, progress)
    return score_in_processes(job, division, progress)


def _open_or_resume(
    config: ScoreConfig | None, store: Path | str | None, resume: str | None, *, once: bool
) -> Job:
    if (config is None) == (resume is None):
        raise ConfigError("expected either a config to score or the ID of a job to resume")
    if config:
        return open_job(config, store, once=once)
    job = resume_job(str(resume), store)
    require_unchanged(job)
    return replace(job, once=once)


def score(
    config: ScoreConfig | None = None,
    store: Path | str | None = None,
    *,
    resume: str | None = None,
    threads: int | None = None,
    address: str | None = None,
    progress: ProgressCallback | None = None,
    once: bool = False,
) -> ScoredJob:
    """Score an input of any size into the `scores` table, or into a folder.

    Args:
        config: Settings of the job; None to resume one.
        store: Root of the store.
        resume: ID of a stopped job to resume.
        threads: Number of cores to use; that of the settings by default.
        address: Address of a Dask scheduler, `tcp://…`; by default this process scores.
        progress: Receives the number of scored rows.
        once: Whether to stop if another job has scored the same input with the same model and
            settings. By default an input can be scored again.

    Raises:
        InputError: The model, the input or a setting is invalid; the store is unchanged.
        LockedError: Another job is scoring the same, or writing to the same output.
        AlreadyScoredError: Another job has scored the same, and `once` is set.
        Interrupted: A signal asked to stop; the job can be resumed.
    """
    if threads is not None and threads < 1:
        raise ConfigError(
            f"threads is {threads}, expected at least 1", setting="threads", value=threads
        )
    job = _open_or_resume(config, store, resume, once=once)
    if threads is not None:
        job = job.with_threads(threads)
    with job_context(job):
        return commit_job(job, make_shards(job, address, progress))
