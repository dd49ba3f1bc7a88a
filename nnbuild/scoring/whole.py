"""A scoring job in one call: opened, or taken up again; scored here or on a cluster; committed."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import ConfigError
from nnbuild.scoring.cluster import score_on_cluster
from nnbuild.scoring.commit import ScoredJob, commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.jobs import Job, Watch, score_input, working_on
from nnbuild.scoring.opening import open_job, resume_job
from nnbuild.scoring.shards import Shard


class OpenedJob(BaseModel):
    """A job that is open: small enough to pass between tasks.

    Attributes:
        root: of the store.
        rows: of the input.
    """

    model_config = ConfigDict(frozen=True)
    root: str
    score_id: str
    rows: int

    def job(self) -> Job:
        """The job, opened again; its model and input are verified."""
        return resume_job(self.score_id, self.root)


def opened(config: ScoreConfig | None, store: Path | str | None, resume: str | None) -> OpenedJob:
    """Begin a job, or take one up; see `score`."""
    job = _open(config, store, resume)
    return OpenedJob(root=str(job.store.root), score_id=job.score_id, rows=job.total)


def make_shards(job: Job, address: str | None, watch: Watch | None = None) -> list[Shard]:
    """Make the shards that are not there yet, here or on the cluster at an address; see `score`."""
    return score_input(job, watch) if address is None else score_on_cluster(job, address, watch)


def _open(config: ScoreConfig | None, store: Path | str | None, resume: str | None) -> Job:
    if (config is None) == (resume is None):
        raise ConfigError("give what is to be scored, or the id of a job to resume, and not both")
    return open_job(config, store) if config else resume_job(str(resume), store)


def score(
    config: ScoreConfig | None = None,
    store: Path | str | None = None,
    *,
    resume: str | None = None,
    address: str | None = None,
    watch: Watch | None = None,
) -> ScoredJob:
    """Score an input of any size into the `scores` table, or into a folder.

    Args:
        config: what is scored, by which model, and how; not needed to resume.
        store: its root.
        resume: id of a job that was stopped.
        address: of a Dask scheduler, `tcp://…`; this process scores if not given.
        watch: is told of rows.

    Raises:
        InputError: something that was given cannot be used; the store is as it was.
        Interrupted: a signal asked to stop; the job waits to be resumed.
    """
    job = _open(config, store, resume)
    with working_on(job):
        return commit_job(job, make_shards(job, address, watch))
