"""Test stores that disappear during a run: no new store is created, and the run can be resumed."""

import contextlib
import shutil
from pathlib import Path

import pytest
from command_line import call
from run_values import values
from score_data import parquet

from nnbuild.errors import NnbuildError, StoreError, StoreGoneError
from nnbuild.pipeline import commit
from nnbuild.pipeline.run import open_run, retrain, run_context
from nnbuild.runtime import fault_injection
from nnbuild.scoring import ScoreConfig, score
from nnbuild.store import Store, champion, locks, presence
from nnbuild.store.filesystem import make_durable_dir, write_bytes

POINTS = (
    "load_data:begin",
    "checkpoint:arrays",
    "export_model:begin",
    "commit:laid-out",
    "commit:history",
)


@pytest.fixture
def at_point(monkeypatch):
    """Call a function at a named point of the code, the first time it is reached."""

    def install(name, function):
        left = [function]

        def point(reached):
            if reached == name and left:
                left.pop()()

        monkeypatch.setattr(fault_injection, "failpoint", point)

    return install


@pytest.mark.parametrize("point", POINTS)
def test_run_store_moved_is_resumed(tmp_path, small_config, small_run, at_point, point):
    old, new = tmp_path / "old", tmp_path / "new"
    at_point(point, lambda: old.rename(new))
    with pytest.raises(StoreGoneError) as caught:
        retrain(small_config, old)
    assert str(old) in str(caught.value)
    assert "nnbuild run --resume" in " ".join(caught.value.__notes__)
    assert not old.exists()
    store = Store(new)
    assert store.run_ids() == []
    (waiting,) = store.unfinished_runs()
    retrain(None, new, resume=waiting.run_id)
    assert store.run_ids() == [waiting.run_id]
    assert values(store, waiting.run_id) == values(small_run, *small_run.run_ids())
    assert champion.current(store) == waiting.run_id
    assert not old.exists()


@pytest.mark.parametrize("point", ["check_data:begin", "commit:linked"])
def test_store_deleted_stays_deleted(tmp_path, small_config, at_point, point):
    at_point(point, lambda: shutil.rmtree(tmp_path / "store"))
    with pytest.raises(StoreGoneError, match="disappeared during the run"):
        retrain(small_config, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_store_replaced_is_unchanged(tmp_path, small_config, at_point):
    def replace():
        (tmp_path / "store").rename(tmp_path / "moved")
        (tmp_path / "store" / "staging").mkdir(parents=True)
        (tmp_path / "store" / "store.json").write_text('{"schema_version": "1"}')

    at_point("checkpoint:end", replace)
    with pytest.raises(StoreGoneError):
        retrain(small_config, tmp_path / "store")
    names = sorted(path.name for path in (tmp_path / "store").rglob("*"))
    assert names == ["staging", "store.json"]
    assert len(Store(tmp_path / "moved").unfinished_runs()) == 1


def test_store_without_marker_is_unchanged(tmp_path, small_config, at_point):
    marker = tmp_path / "store" / "store.json"
    content = []
    at_point("checkpoint:end", lambda: (content.append(marker.read_bytes()), marker.unlink()))
    with pytest.raises(StoreGoneError):
        retrain(small_config, tmp_path / "store")
    marker.write_bytes(content[0])
    (waiting,) = Store(tmp_path / "store").unfinished_runs()
    assert retrain(None, tmp_path / "store", resume=waiting.run_id).status == "succeeded"


def test_commit_store_moved_is_completed(tmp_path, small_config, at_point):
    old, new = tmp_path / "old", tmp_path / "new"
    at_point("champion:changed", lambda: old.rename(new))
    with contextlib.suppress(NnbuildError):
        retrain(small_config, old)
    assert not old.exists()
    store = Store(new)
    commit.complete_interrupted_commits(store)
    assert store.unfinished_runs() == []
    assert [champion.current(store)] == store.run_ids()


def fails_after(run, function):
    with run_context(run):
        function()
        raise ZeroDivisionError


def test_bad_data_store_moved_keeps_files(tmp_path, small_config):
    run = open_run(small_config, tmp_path / "old")
    with pytest.raises(StoreGoneError):
        fails_after(run, lambda: (tmp_path / "old").rename(tmp_path / "new"))
    assert [each.name for each in tmp_path.iterdir()] == ["new"]
    assert len(Store(tmp_path / "new").unfinished_runs()) == 1


def test_error_after_commit_is_raised(tmp_path, small_config):
    run = open_run(small_config, tmp_path / "store")
    with pytest.raises(ZeroDivisionError):
        fails_after(run, lambda: commit.commit_failure(run, ValueError("anything")))
    assert Store(tmp_path / "store").run_ids() == [run.run_id]


@pytest.mark.parametrize("point", ["shard:written", "score:rows"])
def test_job_store_moved_is_resumed(tmp_path, store, at_point, point):
    source, new = parquet(tmp_path / "in.parquet"), tmp_path / "new"
    config = ScoreConfig(input=str(source), batch_size=32, shard_rows=100)
    straight = score(config, store.root)
    expected = store.read_table("scores", straight.score_id).drop_columns(["score_id"])
    at_point(point, lambda: store.root.rename(new))
    with pytest.raises(StoreError) as caught:
        score(config.model_copy(update={"batch_size": 31}), store.root)
    assert not store.root.exists()
    moved = Store(new)
    (waiting,) = (each.name for each in (new / "staging").glob("score-*"))
    assert waiting.removeprefix("score-") in " ".join(caught.value.__notes__)
    done = score(None, new, resume=waiting.removeprefix("score-"))
    rows = moved.read_table("scores", done.score_id).drop_columns(["score_id"])
    assert rows.num_rows == expected.num_rows
    assert rows["example_id"] == expected["example_id"]
    assert not store.root.exists()


def test_sweep_store_deleted_stays_deleted(tmp_path, small_config, at_point):
    from nnbuild.sweep import sweep_config
    from nnbuild.sweep.runner import make_sweep

    config = sweep_config({"grid": {"training.learning_rate": [0.01, 0.02]}}, small_config)
    at_point("persist_history:end", lambda: (tmp_path / "old").rename(tmp_path / "new"))
    with pytest.raises(StoreGoneError):
        make_sweep(config, tmp_path / "old", sweep_id="mine")
    assert [each.name for each in tmp_path.iterdir()] == ["new"]
    swept = make_sweep(None, tmp_path / "new", sweep_id="mine")
    assert [each.state for each in swept.trials] == ["finished", "finished"]


def test_remote_store_replaced_is_unchanged(s3_store, small_config, at_point):
    def replace():
        store = Store(s3_store)
        store._marker.unlink()
        store.create()

    Store(s3_store).create()
    at_point("write_report:end", replace)
    with pytest.raises(StoreGoneError, match="was begun in"):
        retrain(small_config, s3_store)
    store = Store(s3_store)
    assert store.run_ids() == []
    assert len(store.unfinished_runs()) == 1


def test_concurrent_first_runs_are_committed(tmp_path, small_config, monkeypatch):
    root, create = tmp_path / "store", Store.create

    def together(store):
        created = create(store)
        (root / "store.json").unlink()  # as another process sees it that looked a moment before
        return create(store) and created

    monkeypatch.setattr(Store, "create", together)
    run = open_run(small_config, root)
    Store(root).create()
    monkeypatch.undo()
    retrain(None, root, resume=run.run_id)
    assert Store(root).run_ids() == [run.run_id]


def test_tensorboard_store_deleted_is_ignored(tmp_path, small_config, monkeypatch):
    pytest.importorskip("tensorboard")
    training = small_config.training.model_copy(update={"tensorboard": True})
    root = tmp_path / "store"

    class Watch:
        def step(self, *_):
            if root.exists():
                shutil.rmtree(root)

        def epoch(self, *_): ...

    with pytest.raises(StoreGoneError):
        retrain(small_config.model_copy(update={"training": training}), root, progress=Watch())
    assert list(tmp_path.iterdir()) == []


def test_watch_ends_with_block(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    folder = store.root / "staging" / "x"
    before = len(list(Path("/proc/self/fd").iterdir()))
    folder.mkdir()
    with locks.lock(folder):
        shutil.rmtree(store.root)
        with pytest.raises(StoreGoneError):
            make_durable_dir(store.root / "tables")
        with pytest.raises(StoreError):
            write_bytes(folder / "steps" / "x.json", b"{}")
        make_durable_dir(tmp_path / "elsewhere")
    assert not store.root.exists()
    assert presence.gone(folder) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    store.create()


def test_command_store_gone_shows_resume(capfd, tmp_path, small_folder, at_point, prefect_server):
    old, new = tmp_path / "old", tmp_path / "new"
    at_point("checkpoint:end", lambda: old.rename(new))
    options = ["--dataset", small_folder, "--model", "lab", "--epochs", "2"]
    outcome = call(capfd, "run", *options, "--store", old)
    (line,) = [each for each in outcome.err.splitlines() if each.startswith("nnbuild:")]
    assert outcome.code == 2
    assert "disappeared during the run" in line
    (run_id,) = [each.run_id for each in Store(new).unfinished_runs()]
    assert f"nnbuild run --resume {run_id}" in line
    assert not old.exists()
