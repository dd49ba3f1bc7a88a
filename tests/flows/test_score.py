"""The scoring flow on a real Prefect server writes the same bytes as the command."""

import pytest
from score_data import ROWS, bad_parquet, files, parquet
from score_flow import artifacts, config

import nnbuild
from flows.deployment_check import SKIPPED
from flows.scheduled import scheduled_score
from flows.score import score
from nnbuild.errors import AlreadyScoredError, BeingScoredError, ConfigError, DataError, LockedError
from nnbuild.scoring import job as jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input


def test_flow_writes_the_same_as_the_command(store, tmp_path, prefect_server):
    path = parquet(tmp_path / "flow.parquet")
    here = nnbuild.score(config(path), store.root)
    done = score(config(path), str(store.root))
    assert files(store, done.score_id) == files(store, here.score_id)
    data, tasks = artifacts("score-champion-flow.parquet")
    assert data["nnbuild-scoring"] == 100
    assert str(ROWS) in str(data["nnbuild-scores"])
    assert tasks == [f"commit {done.score_id}", "open scoring", f"score {ROWS} rows"]


def test_bad_row_fails_the_flow_without_a_job(store, tmp_path, prefect_server):
    before = store.score_ids()
    with pytest.raises(DataError, match="row group 0, row 3"):
        score(config(bad_parquet(tmp_path / "bad.parquet")), str(store.root))
    assert store.score_ids() == before
    assert not list((store.root / "staging").glob("score-*"))


def test_flow_refuses_an_input_in_progress(store, tmp_path, prefect_server):
    path = parquet(tmp_path / "in.parquet")
    output = str(tmp_path / "out")
    job = jobs.open_job(config(path, output=output), store.root)
    with job_context(job):
        with pytest.raises(BeingScoredError, match=job.score_id):
            score(config(path, output=output), str(store.root))
        with pytest.raises(LockedError, match="is writing there"):
            score(config(path, output=output, top_k=1), str(store.root))
        skipped = scheduled_score(config(path, output=output), str(store.root), return_state=True)
        assert (skipped.name, job.score_id in skipped.message) == (SKIPPED, True)
        commit_job(job, score_input(job))
    with pytest.raises(AlreadyScoredError):
        score(config(path, output=output), str(store.root), once=True)
    assert store.score_ids() == [job.score_id]
    assert not list((store.root / "staging").glob("score-*"))


def test_job_is_either_new_or_resumed(store):
    with pytest.raises(ConfigError, match="either a config to score or the ID of a job"):
        nnbuild.score(None, store.root)
