"""A scoring job in one call: opened, or taken up again; scored here or on a cluster; committed."""

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import ConfigError
from nnbuild.scoring.commit import ScoredJob, commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.dask import score_on_cluster
from nnbuild.scoring.job import Job, Watch, job_context, open_job, resume_job, score_input
from nnbuild.scoring.shards import Shard


class JobHandle(BaseModel):
    """A job that is open: small enough to pass between tasks.

    Attributes:
        root: The store.
        rows: Number of rows of the input.
        is_new: Whether it was begun now, and not resumed.
        once: Whether it is given up if another job has scored the same.
    """

    model_config = ConfigDict(frozen=True)
    root: str
    score_id: str
    rows: int
    is_new: bool = False
    once: bool = False

    def open(self) -> Job:
        """Open the job again; its model and input are verified."""
        job = resume_job(self.score_id, self.root)
        return replace(job, is_new=self.is_new, once=self.once)


def open_or_resume(
    config: ScoreConfig | None,
    store: Path | str | None,
    resume: str | None,
    *,
    once: bool = False,
) -> JobHandle:
    """Begin a job, or resume one; see `score`."""
    job = _open(config, store, resume, once=once)
    return JobHandle(
        root=str(job.store.root),
        score_id=job.score_id,
        rows=job.total,
        is_new=job.is_new,
        once=once,
    )


def make_shards(job: Job, address: str | None, watch: Watch | None = None) -> list[Shard]:
    """Make the shards that are not there yet, here or on the cluster at an address; see `score`."""
    return score_input(job, watch) if address is None else score_on_cluster(job, address, watch)


def _open(
    config: ScoreConfig | None, store: Path | str | None, resume: str | None, *, once: bool
) -> Job:
    if (config is None) == (resume is None):
        raise ConfigError("give what is to be scored, or the id of a job to resume, and not both")
    if config:
        return open_job(config, store, once=once)
    return replace(resume_job(str(resume), store), once=once)


def score(
    config: ScoreConfig | None = None,
    store: Path | str | None = None,
    *,
    resume: str | None = None,
    address: str | None = None,
    watch: Watch | None = None,
    once: bool = False,
) -> ScoredJob:
    """Score an input of any size into the `scores` table, or into a folder.

    Args:
        config: What is scored, by which model, and how; not needed to resume.
        store: The root of the store.
        resume: Id of a job that was stopped.
        address: Address of a Dask scheduler, `tcp://…`; this process scores if not given.
        watch: Gets the number of scored rows.
        once: Whether to give up if another job has scored the same input with the same model and
            options. Without it an input is scored again each time.

    Raises:
        InputError: Something that was given cannot be used; the store is as it was.
        LockedError: Another job is scoring the same, or writing to the same output.
        AlreadyScoredError: Another job has scored the same, and `once` is set.
        Interrupted: A signal asked to stop; the job waits to be resumed.
    """
    job = _open(config, store, resume, once=once)
    with job_context(job):
        return commit_job(job, make_shards(job, address, watch))
