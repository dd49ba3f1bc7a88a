"""Scoring from and to S3, with a server on loopback: the same rows as with folders."""

import threading
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from command_line import call
from kills import killed_at
from score_data import ROWS, images, parquet, rows, scored

import nnbuild
from nnbuild.errors import ConfigError, DataError, StoreError
from nnbuild.pipeline.run import retrain
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.division import Division
from nnbuild.scoring.job import open_job, resume_job
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input
from nnbuild.scoring.processes import score_in_processes
from nnbuild.store import Store


@pytest.fixture
def bucket(s3_store):
    """URL of an empty folder in an empty bucket, and its file system."""
    import s3fs

    return s3_store.removesuffix("store") + "work", s3fs.S3FileSystem(skip_instance_cache=True)


def test_input_and_output_behind_urls(store, tmp_path, bucket):
    url, s3 = bucket
    path = parquet(tmp_path / "in.parquet")
    here = rows(store, scored(store, input=path))
    for name in ("a.parquet", "b.parquet"):
        s3.put_file(str(path), f"{url}/in/{name}")
    one = scored(store, input=f"{url}/in/a.parquet")
    assert rows(store, one).equals(here)
    for address in (f"{url}/in", f"{url}/in/*.parquet"):
        done = scored(store, input=address, output=f"{url}/out-{len(address)}")
        assert done.rows == 2 * ROWS
        found = pq.read_table(f"{url.removeprefix('s3://')}/out-{len(address)}", filesystem=s3)
        assert found["prob_0"].to_pylist() == 2 * here["prob_0"].to_pylist()
        assert s3.exists(f"{url}/out-{len(address)}/_manifest.json")
        with pytest.raises(ConfigError, match="not empty"):
            scored(store, input=f"{url}/in/a.parquet", output=f"{url}/out-{len(address)}")
    with pytest.raises(DataError, match="no Parquet files"):
        scored(store, input=f"{url}/nothing")


def test_replaced_object_is_another_input(store, tmp_path, bucket):
    url, s3 = bucket
    s3.put_file(str(parquet(tmp_path / "in.parquet")), f"{url}/in.parquet")
    job = open_job(ScoreConfig(input=f"{url}/in.parquet"), store.root)
    assert resume_job(job.score_id, store.root).source.identity() == job.source.identity()
    content = bytearray((tmp_path / "in.parquet").read_bytes())
    content[100] ^= 1
    s3.pipe_file(f"{url}/in.parquet", bytes(content))
    with pytest.raises(StoreError, match="its input changed"):
        resume_job(job.score_id, store.root)


def test_throttled_s3_store_is_retried(
    s3_store, s3_service, tmp_path, small_config, capfd, monkeypatch
):
    run = retrain(small_config, s3_store)
    config = ScoreConfig(
        input=str(parquet(tmp_path / "in.parquet")), model=run.run_id, batch_size=32, shard_rows=60
    )
    asked = []

    def slow_down(method, path):
        asked.append((method, path))
        return (
            ("503 Slow Down", "SlowDown")
            if method == "PUT" and asked.count((method, path)) == 1
            else None
        )

    s3_service.answer = slow_down
    # The client waits for up to a second before it tries again, drawn at random.
    monkeypatch.setattr("botocore.retryhandler.random", SimpleNamespace(random=lambda: 0.01))
    done = nnbuild.score(config, s3_store)
    assert [each for each in asked if each[0] == "PUT"]
    s3_service.answer = lambda method, path: None  # noqa: ARG005
    table = nnbuild.read_table(s3_store, "scores", score_id=done.score_id)
    assert table["example_id"].to_pylist() == list(range(ROWS))

    with killed_at("score:manifest"):
        nnbuild.score(config, s3_store)
    assert Store(s3_store).score_ids() == [done.score_id]  # the rows exist, but are not committed
    assert nnbuild.read_table(s3_store, "scores").equals(table)
    options = ["--model", run.run_id, "--batch-size", 32, "--shard-rows", 60, "--store", s3_store]
    outcome = call(capfd, "score", "--input", config.input, *options, "--json")
    assert outcome.code == 0, outcome.err
    again = nnbuild.read_table(s3_store, "scores", score_id=outcome.json["score_id"])
    assert again.drop_columns("score_id").equals(table.drop_columns("score_id"))
    assert len(list(Store(s3_store).local_root.glob("staging/score-*"))) == 0


class Meeting:
    """Holds requests for objects back until a number of them are under way at the same time."""

    SECONDS = 60

    def __init__(self, size):
        self._size, self._inside, self.met = size, 0, False
        self._lock, self._open = threading.Lock(), threading.Event()

    def __call__(self, method, path):
        if method not in {"GET", "HEAD"} or not path.endswith(".parquet"):
            return
        with self._lock:
            self._inside += 1
            self.met |= self._inside >= self._size
        if self.met or not self._open.wait(self.SECONDS):
            self._open.set()
        with self._lock:
            self._inside -= 1


@pytest.mark.parametrize("processes", [1, 2])
def test_many_objects_are_fetched_together(store, tmp_path, bucket, s3_service, processes):
    url, s3 = bucket
    pixels = images(120)
    (tmp_path / "in").mkdir()
    for number in range(40):
        parquet(tmp_path / "in" / f"{number:02}.parquet", pixels[3 * number :][:3])
    s3.put(f"{tmp_path / 'in'}/", f"{url}/in/", recursive=True)
    here = rows(store, scored(store, input=tmp_path / "in"))
    settings = ScoreConfig(input=f"{url}/in", batch_size=32, shard_rows=100)
    footers, objects = Meeting(8), Meeting(8)
    s3_service.answer = footers
    job = open_job(settings, store.root)
    assert footers.met
    s3_service.answer = objects
    with job_context(job):
        made = score_input(job) if processes == 1 else score_in_processes(job, Division(processes))
        assert objects.met
        s3_service.answer = lambda method, path: None  # noqa: ARG005
        assert rows(store, commit_job(job, made)).equals(here)
