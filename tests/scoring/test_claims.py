"""Parallel scoring jobs: no output is written twice, no input is scored twice by accident."""

import errno
import os
import shutil
import threading
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import call, tree_digest
from kills import Killed, killed_at
from score_data import ROWS, images, parquet

import nnbuild
from nnbuild.errors import (
    AlreadyScoredError,
    BeingScoredError,
    ConfigError,
    DataError,
    LockedError,
    StoreError,
)
from nnbuild.runtime import fault_injection
from nnbuild.scoring import ScoreConfig, backfill, days, outputs
from nnbuild.scoring import job as jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.days import partitions
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input

DAY = date(2026, 11, 1)


def config(path, **more):
    return ScoreConfig.model_validate(
        {"input": str(path), "batch_size": 32, "shard_rows": 60, **more}
    )


def finish(job):
    return commit_job(job, score_input(job))


@contextmanager
def running(store, **options):
    """A job in progress."""
    job = jobs.open_job(config(**options), store.root)
    with job_context(job):
        yield job


@pytest.fixture
def inputs(tmp_path):
    parquet(tmp_path / "a.parquet")
    parquet(tmp_path / "b.parquet", images(50))
    return tmp_path


@pytest.fixture
def dated(tmp_path):
    """Address of the input of one day."""
    (tmp_path / "in" / f"date={DAY}").mkdir(parents=True)
    parquet(tmp_path / "in" / f"date={DAY}" / "part.parquet", images(90))
    return f"{tmp_path}/in/date={{date}}/"


def finish_until(point, job):
    """Run a job up to a failpoint, where its process dies."""
    with killed_at(point), job_context(job):
        finish(job)


@pytest.mark.parametrize("spelling", ["out", "out/", "./x/../out", "link/out", "absolute"])
@pytest.mark.parametrize("own", [True, False])
def test_output_in_use_is_refused(capfd, store, inputs, monkeypatch, spelling, own):
    monkeypatch.chdir(inputs)
    (inputs / "x").mkdir()
    (inputs / "link").symlink_to(inputs)
    root = store.root if own else shutil.copytree(store.root, inputs / "other")
    spelling = inputs / "out" if spelling == "absolute" else spelling
    given = ["score", "--input", "b.parquet", "--output", spelling, "--store", root]
    with running(store, path="a.parquet", output="out") as job:
        before = tree_digest(root)
        outcome = call(capfd, *given)
        assert outcome.code == 2
        assert f"scoring job {job.score_id} of store {store.root}" in outcome.err
        assert "wait for it to end, or choose another folder" in outcome.err
        assert len(outcome.err.splitlines()) == 1
        assert tree_digest(root) == before
        finish(job)
    assert pq.read_table(inputs / "out").num_rows == ROWS
    outcome = call(capfd, *given)
    assert (outcome.code, "not empty" in outcome.err) == (2, True)
    assert [each.name for each in inputs.iterdir() if each.name.startswith(".")] == []


def test_output_of_failed_job_is_free(store, inputs):
    output = str(inputs / "new" / "out")
    with pytest.raises(DataError), running(store, path=inputs / "a.parquet", output=output):
        raise DataError("a bad row")
    assert not (inputs / "new").exists()
    done = nnbuild.score(config(inputs / "b.parquet", output=output), store.root)
    assert done.output == output


def test_output_of_killed_job_is_reserved(store, inputs, monkeypatch):
    options = {"path": inputs / "a.parquet", "output": str(inputs / "out")}
    job = jobs.open_job(config(**options), store.root)
    finish_until("score:shards", job)
    done = nnbuild.score(resume=job.score_id, store=store.root)
    assert done.score_id == job.score_id
    assert pq.read_table(inputs / "out").num_rows == ROWS


def test_output_of_killed_job_can_be_taken(store, inputs, monkeypatch):
    output = str(inputs / "out")
    job = jobs.open_job(config(inputs / "a.parquet", output=output), store.root)
    finish_until("score:shards", job)
    nnbuild.score(config(inputs / "b.parquet", output=output), store.root)
    with pytest.raises(StoreError, match="no longer empty since") as refused:
        nnbuild.score(resume=job.score_id, store=store.root)
    assert job.score_id in refused.value.__notes__[0]
    assert pq.read_table(output).num_rows == 50
    (inputs / "out").rename(inputs / "moved")
    assert nnbuild.score(resume=job.score_id, store=store.root).rows == ROWS
    assert pq.read_table(output).num_rows == ROWS


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no mounted folder to try")
def test_output_that_is_a_mounted_disk_is_refused(store, inputs):
    before = tree_digest(store.root)
    with pytest.raises(ConfigError, match="root of a mounted disk"):
        nnbuild.score(config(inputs / "a.parquet", output="/proc"), store.root)
    assert tree_digest(store.root) == before


def test_output_that_cannot_be_replaced_is_not_called_taken(store, inputs, monkeypatch):
    """As when a disk is mounted there since the job began."""
    output = inputs / "out"
    options = {"path": inputs / "a.parquet", "output": str(output)}
    job = jobs.open_job(config(**options), store.root)
    finish_until("score:shards", job)
    output.mkdir()

    def busy(_path, _target):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", busy)
        with pytest.raises(StoreError, match="busy"):
            nnbuild.score(resume=job.score_id, store=store.root)
    assert nnbuild.score(resume=job.score_id, store=store.root).rows == ROWS


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_output_taken_meanwhile_keeps_rows(capfd, store, inputs, monkeypatch, kind):
    output = inputs / "out"

    def meanwhile(name):
        if name == "score:shards" and kind == "folder":
            parquet(output.mkdir() or output / "theirs.parquet")
        elif name == "score:shards":
            output.write_text("theirs")

    monkeypatch.setattr(fault_injection, "failpoint", meanwhile)
    given = ["--input", inputs / "a.parquet", "--output", output]
    outcome = call(capfd, "score", *given, "--store", store.root)
    monkeypatch.setattr(fault_injection, "failpoint", lambda _: None)
    assert outcome.code == 2
    assert "no longer empty since the job began" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert output.read_text() == "theirs" if kind == "file" else list(output.iterdir())
    (waiting,) = (store.root / "staging").glob("score-*")
    score_id = waiting.name.removeprefix("score-")
    assert f"--resume {score_id}" in outcome.err
    output.rename(inputs / "moved")
    outcome = call(capfd, "score", "--resume", score_id, "--store", store.root)
    assert outcome.code == 0
    assert pq.read_table(output).num_rows == ROWS
    assert [each.name for each in inputs.iterdir() if each.name.startswith(".")] == []


@pytest.mark.parametrize("at", ["the copy", "the rename"])
def test_job_killed_in_publish_resumes(store, inputs, monkeypatch, at):
    straight = nnbuild.score(config(inputs / "a.parquet", output=str(inputs / "o1")), store.root)
    given = config(inputs / "a.parquet", output=str(inputs / "o2"))

    def dying(folder):
        if (folder == inputs) == (at == "the rename"):
            raise Killed

    monkeypatch.setattr(outputs, "fsync_dir", dying)
    with pytest.raises(Killed):
        nnbuild.score(given, store.root)
    monkeypatch.undo()
    assert (inputs / "o2").exists() == (at == "the rename")
    again = nnbuild.score(given, store.root)
    assert again.rows == straight.rows
    assert len(store.score_ids()) == 2
    for path in (inputs / "o1").glob("*.parquet"):
        assert (inputs / "o2" / path.name).read_bytes() == path.read_bytes()
    assert [each.name for each in inputs.iterdir() if each.name.startswith(".")] == []


def test_output_may_link_to_empty_folder(store, inputs):
    (inputs / "real").mkdir()
    (inputs / "out").symlink_to("real")
    nnbuild.score(config(inputs / "a.parquet", output=str(inputs / "out")), store.root)
    assert (inputs / "out").is_symlink()
    assert pq.read_table(inputs / "real").num_rows == ROWS


def test_same_job_in_parallel_is_refused(capfd, store, inputs):
    given = ["score", "--input", inputs / "a.parquet", "--store", store.root, "--json"]
    with running(store, path=inputs / "a.parquet") as job:
        before = tree_digest(store.root)
        outcome = call(capfd, *given)
        assert outcome.code == 2
        assert f"scoring job {job.score_id} (process " in outcome.err
        assert "is scoring" in outcome.err
        assert tree_digest(store.root) == before
        with pytest.raises(LockedError):  # before the cluster is contacted
            nnbuild.score(config(inputs / "a.parquet"), store.root, address="tcp://127.0.0.1:1")
        with pytest.raises(BeingScoredError, match="is held by process"):
            nnbuild.score(resume=job.score_id, store=store.root)
        for other in (["--logits"], ["--input", inputs / "b.parquet"]):
            assert call(capfd, *given, *other).code == 0
        finish(job)
    assert call(capfd, *given).json["rows"] == ROWS  # one after the other, both score
    assert not list((store.root / "staging").iterdir())


def test_job_of_the_same_instant_is_refused(store, inputs):
    """Both jobs are opened before either starts."""
    options = {"path": inputs / "a.parquet", "output": str(inputs / "out")}
    first = jobs.open_job(config(**options), store.root)
    second = jobs.open_job(config(**options, top_k=1), store.root)
    third = jobs.open_job(config(**options, batch_size=16), store.root)
    with job_context(first):
        with pytest.raises(LockedError, match="is writing there"), job_context(second):
            pass
        with pytest.raises(BeingScoredError), job_context(third):
            pass
        finish(first)
    assert not list((store.root / "staging").iterdir())
    assert len(store.score_ids()) == 1


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(days, "_FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(days, "_MAX_RETRY_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", [None, Killed(), DataError("a bad row")])
def test_backfill_waits_for_a_busy_day(store, dated, error):
    reported, waits, results = [], threading.Event(), []

    def report(part):
        reported.append(part)
        waits.set()

    def second():
        results.extend(backfill(config(dated), DAY, DAY, store.root, on_day_done=report))

    thread = threading.Thread(target=second)
    job = jobs.open_job(config(dated.format(date=DAY), threads=1), store.root)
    with suppress(DataError, Killed), job_context(job):
        thread.start()
        assert waits.wait(60)
        if error is not None:
            raise error
        finish(job)
    thread.join(60)
    assert reported[0].status == "waiting"
    assert job.score_id in reported[0].remark
    (part,) = results
    if error is None:
        assert (part.status, part.score_id, part.rows) == ("skipped", job.score_id, 0)
    else:
        assert (part.status, part.rows) == ("scored", 90)
    assert store.read_table("scores").num_rows == 90
    assert len(store.score_ids()) == 1


@pytest.mark.usefixtures("impatient")
def test_parallel_backfills_score_once(store, tmp_path):
    last = date(2026, 11, 4)
    for number in range(1, 5):
        folder = tmp_path / "in" / f"date=2026-11-0{number}"
        folder.mkdir(parents=True)
        parquet(folder / "part.parquet", images(60) // number)
    results = [[], []]

    def score(found):
        address = f"{tmp_path}/in/date={{date}}/"
        found.extend(backfill(config(address), DAY, last, store.root))

    threads = [threading.Thread(target=score, args=(each,)) for each in results]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)
    for one, other in zip(*results, strict=True):
        assert sorted([one.status, other.status]) == ["scored", "skipped"]
        assert one.score_id == other.score_id
    assert store.read_table("scores").num_rows == 240
    assert len(store.score_ids()) == 4


def test_job_finished_by_another_before_its_lock_is_refused(store, inputs):
    """The other call finds the new job before its own process has locked it, and resumes it."""
    given = config(inputs / "a.parquet")
    job = jobs.open_job(given, store.root)
    assert nnbuild.score(given, store.root).score_id == job.score_id
    ended = pytest.raises(BeingScoredError, match="another process ended scoring job")
    with ended, job_context(job):
        pytest.fail("locked a job that is committed")
    assert store.score_ids() == [job.score_id]
    assert not list((store.root / "staging").iterdir())


def test_waiting_job_finished_by_another_is_not_resumed(store, inputs, monkeypatch):
    """The other process commits the job between the search for it and its resumption."""
    given = config(inputs / "a.parquet")
    waiting, search = jobs.open_job(given, store.root), jobs.claims.waiting_job

    def find_late(job, **options):
        found = search(job, **options)
        if found is not None:
            with job_context(waiting):
                finish(waiting)
        return found

    monkeypatch.setattr(jobs.claims, "waiting_job", find_late)
    with pytest.raises(AlreadyScoredError) as caught:
        nnbuild.score(given, store.root, once=True)
    assert caught.value.score_id == waiting.score_id
    assert nnbuild.score(given, store.root).score_id != waiting.score_id


@pytest.mark.parametrize("output", [None, "out/{date}"])
def test_day_scored_after_check_is_skipped(store, dated, tmp_path, monkeypatch, output):
    """The other job commits between the check and the start of this job."""
    monkeypatch.chdir(tmp_path)
    given = config(dated, output=output)
    (one,) = partitions(given, DAY, DAY)
    real, others = days.scored_before, []

    def late(*given):
        found = real(*given)
        if not others:
            others.append(nnbuild.score(one.config, store.root))
        return found

    monkeypatch.setattr(days, "scored_before", late)
    (part,) = backfill(given, DAY, DAY, store.root)
    assert (part.status, part.score_id) == ("skipped", others[0].score_id)
    assert store.score_ids() == [part.score_id]


def test_day_scored_meanwhile_is_skipped(store, dated):
    """A machine that shares the store but not its locks commits first."""
    given = config(dated.format(date=DAY))
    ours = jobs.open_job(given, store.root, once=True)
    theirs = jobs.open_job(given.model_copy(update={"batch_size": 16}), store.root)

    def late():
        shards = score_input(ours)
        finish(theirs)
        commit_job(ours, shards)

    with pytest.raises(AlreadyScoredError) as refused, job_context(ours):
        late()
    assert refused.value.score_id == theirs.score_id
    assert store.score_ids() == [theirs.score_id]
    assert store.read_table("scores").num_rows == 90
    assert not list((store.root / "staging").iterdir())


def test_backfill_to_busy_output_is_refused(capfd, store, inputs, dated):
    output = str(inputs / "out" / str(DAY))
    options = ["--input", dated, "--from", DAY, "--to", DAY, "--store", store.root]
    with running(store, path=inputs / "a.parquet", output=output) as job:
        outcome = call(capfd, "score", *options, "--output", inputs / "out" / "{date}")
        assert outcome.code == 2
        assert f"scoring job {job.score_id}" in outcome.err
        assert outcome.out == ""


def test_output_of_two_days_is_refused():
    dated = ScoreConfig(input="in/{date}", output="out/{date:%Y-%m}")
    with pytest.raises(ConfigError, match="the same for 2026-11-01 and 2026-11-02"):
        partitions(dated, DAY, date(2026, 11, 2))
    monthly = ScoreConfig(input="in/{date:%Y-%m}", output="out/{date:%Y-%m}")
    assert len(partitions(monthly, DAY, date(2026, 11, 2))) == 2


def test_input_changed_meanwhile_is_rescored(store, dated, tmp_path, monkeypatch):
    """The manifest records the input that was scored, not that at the end."""
    path = tmp_path / "in" / f"date={DAY}" / "part.parquet"

    def changing(name):
        if name == "score:shards":
            parquet(path, images(91))

    monkeypatch.setattr(fault_injection, "failpoint", changing)
    backfill(config(dated), DAY, DAY, store.root)
    monkeypatch.setattr(fault_injection, "failpoint", lambda _: None)
    (part,) = backfill(config(dated), DAY, DAY, store.root)
    assert (part.status, part.rows) == ("scored", 91)


def test_remote_outputs_share_a_lock_file(tmp_path, monkeypatch):
    pytest.importorskip("upath")
    monkeypatch.setenv("NNBUILD_STAGING_DIR", str(tmp_path))
    same = ("memory://bucket/out", "memory://bucket/out/", "memory://bucket//out")
    locks = {outputs.lock_file(outputs.location(each)) for each in same}
    assert len(locks) == 1
    assert locks.pop().is_relative_to(tmp_path)
    assert outputs.lock_file(outputs.location("memory://bucket/other")) not in locks
    (tmp_path / "here").mkdir()
    here = outputs.lock_file(outputs.location(f"file://{tmp_path}/here/out"))
    assert here == outputs.lock_file(outputs.location(str(tmp_path / "here" / "out")))


def test_remote_output_taken_keeps_rows(store, inputs, tmp_path, monkeypatch):
    upath = pytest.importorskip("upath")
    monkeypatch.setenv("NNBUILD_STAGING_DIR", str(tmp_path / "workshop"))
    root = upath.UPath(f"memory://{tmp_path.name}")
    output = root / "out"
    theirs = output / "theirs.parquet"

    def meanwhile(name):
        if name == "score:shards":
            theirs.write_bytes(b"theirs")

    monkeypatch.setattr(fault_injection, "failpoint", meanwhile)
    given = config(inputs / "a.parquet", output=f"memory://{tmp_path.name}/out")
    with pytest.raises(StoreError, match="no longer empty since the job began"):
        nnbuild.score(given, store.root)
    monkeypatch.setattr(fault_injection, "failpoint", lambda _: None)
    assert [each.name for each in output.iterdir()] == ["theirs.parquet"]
    theirs.unlink()
    assert nnbuild.score(given, store.root).rows == ROWS
    names = {each.name for each in output.iterdir()}
    assert "_manifest.json" in names
    assert "_claim" not in names


def test_remote_claim_is_exclusive(tmp_path):
    upath = pytest.importorskip("upath")
    output = upath.UPath(f"memory://{tmp_path.name}-claim/out")
    assert outputs._has_claimed(output, "first")
    assert not outputs._has_claimed(output, "first")
    with pytest.raises(StoreError):
        outputs._has_claimed(output, "second")
    assert outputs.is_taken(output, "second")
    assert not outputs.is_taken(output, "first")
