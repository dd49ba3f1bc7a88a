"""Readers while runs are deleted: whole runs or none, on a disk and on an object store."""

import shutil
import threading

import pytest
from store_contents import NOW, StoreFiller, require_intact

from nnbuild.errors import StoreError
from nnbuild.pipeline.retention import RetentionConfig, prune
from nnbuild.pipeline.run import (
    decide_and_commit,
    open_run,
    run_context,
    train_and_evaluate,
)
from nnbuild.store import Store, deletion, filesystem, views
from nnbuild.store import query as queries
from nnbuild.store.query import query
from nnbuild.store.views import TableView


@pytest.fixture
def filler(trained, tmp_path):
    return StoreFiller(tmp_path / "filled", Store(trained))


def delete_once(monkeypatch, owner, name, action):
    """Run an action before the first call of a method."""
    original, done = getattr(owner, name), []

    def wrapped(self, *arguments, **named):
        if not done:
            done.append(True)
            action()
        return original(self, *arguments, **named)

    monkeypatch.setattr(owner, name, wrapped)


def test_read_table_during_prune(filler, monkeypatch):
    runs = [filler.run(days_old=3 - night) for night in range(3)]
    prune_all = RetentionConfig(keep=1)
    delete_once(monkeypatch, TableView, "__init__", lambda: prune(filler.store, prune_all, now=NOW))
    table = filler.store.read_table("predictions")
    assert set(table["run_id"].to_pylist()) == {runs[2]}
    assert table.num_rows == 45


def test_read_table_damaged_is_not_repeated(filler):
    run_id = filler.run()
    part = next(filler.store.partition("history", run_id).iterdir())
    part.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="restore it from a copy"):
        filler.store.read_table("history")
    part.unlink()
    part.symlink_to("nowhere.parquet")
    with pytest.raises(StoreError, match="No such file"):
        filler.store.read_table("history")


def test_query_during_prune(filler, monkeypatch):
    runs = [filler.run(days_old=3 - night) for night in range(3)]
    prune_all = RetentionConfig(keep=1)
    delete_once(monkeypatch, TableView, "__init__", lambda: prune(filler.store, prune_all, now=NOW))
    found = query(filler.store, "select distinct run_id from history join runs using (run_id)")
    assert found["run_id"].to_pylist() == [runs[2]]


def test_query_of_deleted_run_is_one_line(filler, monkeypatch):
    """Files that are deleted before DuckDB opens them cannot be read again."""
    runs = [filler.run(days_old=3 - night) for night in range(2)]
    original = queries._with_arrow_types

    def prune_first(relation):
        prune(filler.store, RetentionConfig(keep=1), now=NOW)
        return original(relation)

    monkeypatch.setattr(queries, "_with_arrow_types", prune_first)
    with pytest.raises(StoreError) as raised:
        query(filler.store, "select * from predictions")
    assert str(raised.value) == f"{runs[0]} was deleted while the query ran; repeat it"


def test_reader_never_sees_half(filler):
    """Readers in a thread find every listed run with all of its rows, while others are deleted."""
    for night in range(12):
        filler.run(days_old=13 - night, data=night)
    store, stop, trouble, reads = filler.store, threading.Event(), [], []

    def read():
        while not stop.is_set():
            try:
                ids = store.read_table("predictions")["run_id"].to_pylist()
                joined = query(
                    store, "select run_id, count(*) n from predictions group by run_id"
                ).to_pylist()
            except StoreError as error:
                trouble.append(str(error)) if "was deleted while" not in str(error) else None
                continue
            reads.append(len(ids))
            trouble.extend(each for each in set(ids) if ids.count(each) != 45)
            trouble.extend(each for each in joined if each["n"] != 45)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for keep in range(11, 0, -1):
            prune(store, RetentionConfig(keep=keep), now=NOW)
    finally:
        stop.set()
        thread.join()
    assert trouble == []
    assert reads


# Object stores


@pytest.fixture
def s3_filled(filler, s3_store):
    """A store on S3 with four runs, each with its own dataset, and a job."""
    runs = [filler.run(days_old=9 - night, data=night) for night in range(4)]
    filler.promote(runs[0])
    filler.job(runs[3])
    store = Store(s3_store)
    filesystem.upload_folder(filler.store.root, store.root)
    return store, runs


def objects(store):
    found = store.root.fs.find(store.root.path, detail=True)
    return {name: each["size"] for name, each in found.items()}


def test_s3_prune_frees_what_it_says(s3_filled):
    store, runs = s3_filled
    copy = store.local_dataset("small", f"{1:064x}")
    config, before = RetentionConfig(keep=1), objects(store)
    cached = sum(each.stat().st_size for each in copy.iterdir())
    planned = prune(store, config, now=NOW, dry_run=True)
    assert objects(store) == before
    assert prune(store, config, now=NOW) == planned
    after = objects(store)
    assert sum(before.values()) - sum(after.values()) + cached == planned.bytes
    assert not any(run_id in name for name in after for run_id in runs[1:3])
    assert not copy.exists()
    assert store.run_ids() == [runs[0], runs[3]]
    require_intact_remotely(store, runs[0])


def require_intact_remotely(store, run_id):
    for name, entry in store.manifest(run_id).files.items():
        if not name.startswith("tables/runs/"):
            assert filesystem.file_digest(store.root / name) == entry.sha256


def test_s3_prune_refused_anywhere_is_completed(s3_filled, s3_service):
    """Refuse every deletion after the first few; then any machine can complete it."""
    store, runs = s3_filled
    config, refused = RetentionConfig(keep=1), 0
    for allowed in range(0, 200, 7):
        count = iter(range(allowed))

        def answer(method, path, count=count):
            if method == "DELETE" and next(count, None) is None:
                return "403 Forbidden", "AccessDenied"
            return None

        s3_service.answer = answer
        try:
            prune(store, config, now=NOW)
            break
        except StoreError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        finally:
            s3_service.answer = lambda method, path: None  # noqa: ARG005
        for run_id in store.run_ids():
            require_intact_remotely(store, run_id)
            assert store.read_table("predictions", run_id).num_rows == 45
        shutil.rmtree(store.local_root, ignore_errors=True)  # another machine
    assert refused > 2
    assert deletion.interrupted(store) == []
    assert not any(run_id in name for name in objects(store) for run_id in runs[1:3])
    assert not any("plan.json" in name for name in objects(store))
    assert views.partitions(store.root / "tables" / "runs", "run_id") == [runs[0], runs[3]]


def test_s3_run_of_other_machine_restores_data(
    s3_store, small_config, small_run, monkeypatch, tmp_path
):
    """A machine that prunes does not see what another one has in staging."""
    store = Store(s3_store)
    filesystem.upload_folder(small_run.root, store.root)
    data = store.manifest(*store.run_ids()).steps.load_data
    monkeypatch.setenv("NNBUILD_STAGING_DIR", str(tmp_path / "another machine"))
    run = open_run(small_config, s3_store)
    with run_context(run):
        train_and_evaluate(run)
        store.root.fs.rm(store.dataset_folder(data.name, data.digest).path, recursive=True)
        assert not store.has_dataset(data.name, data.digest)
        decide_and_commit(run)
    assert store.has_dataset(data.name, data.digest)
    require_intact_remotely(store, run.run_id)


def test_memory_store_is_pruned(filler):
    runs = [filler.run(days_old=3 - night, data=night) for night in range(3)]
    filler.promote(runs[0])
    store = Store("memory://pruned/store")
    filesystem.upload_folder(filler.store.root, store.root)
    done = prune(store, RetentionConfig(keep=1), now=NOW)
    assert list(done.runs) == [runs[1]]
    assert store.run_ids() == [runs[0], runs[2]]
    assert not any(runs[1] in name for name in objects(store))


def test_require_intact_notices_damage(filler):
    run_id = filler.run()
    require_intact(filler.store, run_id)
    (filler.store.root / "runs" / run_id / "model.keras").write_bytes(b"")
    with pytest.raises(AssertionError):
        require_intact(filler.store, run_id)
