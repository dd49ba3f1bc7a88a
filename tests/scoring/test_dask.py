"""Scoring on a real Dask cluster: the same bytes as in one process, whatever worker dies."""

import os
import signal

import numpy as np
import pytest
from command_line import call, tree_digest
from score_data import ROWS, bad_parquet, files, images, parquet

import nnbuild
from nnbuild.errors import DataError, Interrupted, StoreError
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.dask import make_shard

distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # sockets of workers that were killed


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two worker processes with one thread each, on loopback."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=50,
        host="127.0.0.1",
    ) as found:
        yield found


def config(path, **more):
    return ScoreConfig.model_validate(
        {"input": str(path), "batch_size": 32, "shard_rows": 30, "threads": 1, **more}
    )


def test_cluster_writes_the_same_bytes(store, tmp_path, cluster):
    path = parquet(tmp_path / "in.parquet", customer=np.arange(ROWS), group=30)
    settings = {"keep": ["customer"], "coverage": 0.8, "energy": True}
    here = nnbuild.score(config(path, **settings), store.root)
    told = []

    class Watch:
        def scored(self, done, total, _seconds):
            told.append((done, total))

    there = nnbuild.score(
        config(path, **settings),
        store.root,
        address=cluster.scheduler_address,
        progress=Watch(),
    )
    assert there.rows == ROWS
    assert files(store, there.score_id) == files(store, here.score_id)
    assert there.drift == here.drift
    assert there.drift.measures
    assert told[-1] == (ROWS, ROWS)
    assert told == sorted(told)
    assert not (store.root / "quarantine").exists()


def test_killed_worker_only_costs_time(store, tmp_path, cluster):
    path = parquet(tmp_path / "in.parquet", images(900), group=30)
    here = nnbuild.score(config(path), store.root)
    killed = []

    class Killing:
        def scored(self, done, total, _seconds):
            if not killed and done < total:
                workers = cluster.scheduler_info["workers"]
                pids = [nanny.pid for nanny in cluster.workers.values()]
                assert len(workers) == len(pids) == 2
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

    there = nnbuild.score(
        config(path), store.root, address=cluster.scheduler_address, progress=Killing()
    )
    assert killed
    assert files(store, there.score_id) == files(store, here.score_id)
    assert there.rows == 900


def test_signal_leaves_a_resumable_job(store, tmp_path, cluster):
    path = parquet(tmp_path / "in.parquet", images(600), group=30)
    here = nnbuild.score(config(path), store.root)

    class Stopping:
        def scored(self, _done, _total, _seconds):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        nnbuild.score(
            config(path), store.root, address=cluster.scheduler_address, progress=Stopping()
        )
    (waiting,) = (store.root / "staging").glob("score-*")
    again = nnbuild.score(config(path), store.root)
    assert waiting.name == f"score-{again.score_id}"
    assert files(store, again.score_id) == files(store, here.score_id)


def test_error_of_worker_is_raised_here(store, tmp_path, cluster):
    path = bad_parquet(tmp_path / "bad.parquet")
    before = tree_digest(store.root)
    with pytest.raises(DataError, match=r"bad\.parquet, row group \d, row \d+: "):
        nnbuild.score(config(path), store.root, address=cluster.scheduler_address)
    assert tree_digest(store.root) == before
    done = nnbuild.score(
        config(path, on_error="quarantine"), store.root, address=cluster.scheduler_address
    )
    assert (done.rows, done.quarantined) == (ROWS - 3, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--runner", "dask"], "go together"),
        (["--address", "tcp://127.0.0.1:1"], "go together"),
        (["--runner", "spark"], "'local', 'dask'"),
        (["--runner", "dask", "--address", "tcp://127.0.0.1:1"], "no Dask scheduler answers"),
        (["--runner", "dask", "--address", "nonsense"], "expected a Dask scheduler"),
    ],
)
def test_a_cluster_that_is_not_there(capfd, store, tmp_path, monkeypatch, options, says):
    from nnbuild.scoring import dask as module

    monkeypatch.setattr(module, "_SECONDS_TO_CONNECT", 1)
    path = parquet(tmp_path / "in.parquet")
    before = tree_digest(store.root)
    outcome = call(capfd, "score", "--input", path, *options, "--store", store.root)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert says in outcome.err
    assert tree_digest(store.root) == before


def test_a_store_on_s3(s3_store, small_config, tmp_path, cluster):
    run = nnbuild.retrain(small_config, s3_store)
    asked = config(parquet(tmp_path / "in.parquet", group=30), model=run.run_id)
    here = nnbuild.score(asked, s3_store)
    known = {
        name: value for name, value in os.environ.items() if name.startswith(("AWS_", "NNBUILD_"))
    }
    with distributed.Client(cluster, set_as_default=False) as client:
        # As on workers started by hand; the bound method would copy the environment.
        client.run(lambda: os.environ.update(known))
    there = nnbuild.score(asked, s3_store, address=cluster.scheduler_address)
    one, other = (
        nnbuild.read_table(s3_store, "scores", score_id=each.score_id) for each in (here, there)
    )
    assert len(one) == ROWS
    assert other.drop_columns("score_id").equals(one.drop_columns("score_id"))


def test_worker_without_folder_is_named(store):
    with pytest.raises(StoreError, match=r"does not see .*; share that folder with all workers"):
        make_shard(str(store.root), "20261101T030000000Z-000000", 0)


def test_cluster_scores_with_a_shadow(gated_runs, tmp_path, cluster):
    store, _ = gated_runs
    job = config(parquet(tmp_path / "in.parquet", group=30), shadow="newest")
    address = cluster.scheduler_address
    here, there = (nnbuild.score(job, store.root, address=each) for each in (None, address))
    assert here.shadow_run_id == there.shadow_run_id is not None
    for table in ("scores", "shadow_scores"):
        parts = [
            {path.name: path.read_bytes() for path in folder.iterdir()}
            for each in (here, there)
            for folder in [store.root / "tables" / table / f"score_id={each.score_id}"]
        ]
        assert parts[0] == parts[1]
