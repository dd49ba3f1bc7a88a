"""Score an input of any size in batches: open the job, score its shards, commit them."""

from prefect import flow

from flows.embedded_server import prompt_stop
from flows.flow_runs import FLOW_DEFAULTS, score_name
from nnbuild.scoring import ScoreConfig, ScoredJob
from nnbuild.scoring.job_context import job_context
from tasks.score import commit_scores, open_scoring, score_shards


@flow(name="score", flow_run_name=score_name, **FLOW_DEFAULTS)
def score(
    config: ScoreConfig | None = None,
    store: str | None = None,
    resume: str | None = None,
    address: str | None = None,
    *,
    once: bool = False,
) -> ScoredJob:
    """Score an input; called again with the same parameters, resume a job that was stopped.

    Args:
        config: Scoring configuration: input, model, output and options.
        store: Root of the store; $NNBUILD_STORE or ./nnbuild-store if not given.
        resume: ID of a stopped job to resume, instead of a configuration.
        address: Address of a Dask scheduler, tcp://HOST:PORT. If not given, this process scores.
        once: Whether to fail if another job has scored the same input with the same model.
    """
    job = open_scoring(config, store, resume, once=once)
    with prompt_stop(), job_context(job.open()):
        shards = score_shards(job, address)
        return commit_scores(job, shards)
