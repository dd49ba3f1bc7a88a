"""Batch scoring: open the job → make the shards → commit them."""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.outage import prompt_stop
from nnbuild.runtime.text import sanitize
from nnbuild.scoring import ScoreConfig, ScoredJob
from nnbuild.scoring.job import job_context
from tasks.score import commit_scores, open_scoring, score_shards


def _name() -> str:
    parameters: dict[str, Any] = flow_run.parameters
    if parameters.get("resume"):
        return sanitize(f"resume-{parameters['resume']}")
    config = ScoreConfig.model_validate(parameters["config"])
    return sanitize(f"score-{config.model}-{config.input.rstrip('/').rpartition('/')[2]}")


@flow(name="score", flow_run_name=_name)
def score(
    config: ScoreConfig | None = None,
    store: str | None = None,
    resume: str | None = None,
    address: str | None = None,
    *,
    once: bool = False,
) -> ScoredJob:
    """Score an input of any size; the same parameters again go on with a job that was stopped.

    Args:
        config: what is scored, by which model, and how.
        store: its root; $NNBUILD_STORE or ./nnbuild-store if not given.
        resume: the id of a job that was stopped, instead of a config.
        address: of a Dask scheduler, tcp://HOST:PORT; this process scores if not given.
        once: Whether the run fails if another job has scored the same input with the same model.
    """
    opened = open_scoring(config, store, resume, once=once)
    with prompt_stop(), job_context(opened.open()):
        shards = score_shards(opened, address)
        return commit_scores(opened, shards)
