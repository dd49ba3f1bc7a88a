"""A scoring job in one call: opened, or taken up again; scored here or on a cluster; committed."""

from pathlib import Path

from nnbuild.errors import ConfigError
from nnbuild.scoring.cluster import score_on_cluster
from nnbuild.scoring.commit import ScoredJob, commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.jobs import Watch, score_input, working_on
from nnbuild.scoring.opening import open_job, resume_job


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
    if (config is None) == (resume is None):
        raise ConfigError("give what is to be scored, or the id of a job to resume, and not both")
    job = open_job(config, store) if config else resume_job(str(resume), store)
    with working_on(job):
        shards = score_input(job, watch) if address is None else score_on_cluster(job, address, watch)
        return commit_job(job, shards)
