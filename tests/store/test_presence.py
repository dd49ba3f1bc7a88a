"""Test commands without a store: one line of error, and nothing is created."""

import socket

import pytest
from command_line import call, tree_digest
from score_data import parquet

import nnbuild
from nnbuild.errors import StoreError
from nnbuild.store import Store

RUN = "20261123T030000000Z-4f2a1c"
READERS = {
    "runs": ["runs"],
    "history": ["history"],
    "history of a run": ["history", RUN],
    "champion": ["champion"],
    "promote": ["promote", RUN],
    "rollback": ["rollback"],
    "sql": ["sql", "select 1"],
    "compare": ["compare", RUN, RUN.replace("4", "5")],
    "trends": ["trends"],
    "report": ["report", RUN],
    "export": ["export", RUN],
    "repair": ["doctor", "--repair"],
    "dry run": ["doctor", "--repair", "--dry-run"],
    "resume": ["run", "--resume", RUN],
    "resume a job": ["score", "--resume", RUN],
    "resume a sweep": ["sweep", "--id", "mine"],
    "score": ["score", "--input", "in.parquet"],
    "score by a run": ["score", "--input", "in.parquet", "--model", RUN],
    "backfill": [
        "score",
        "--input",
        "{date}.parquet",
        "--from",
        "2026-01-01",
        "--to",
        "2026-01-02",
    ],
}
NOTES = {"notes.txt": "mine", "tables/notes.txt": "mine", ".gitlab-ci.yml": "mine"}


def missing(folder):
    return folder / "nowhere" / "store"


def empty(folder):
    (folder / "store").mkdir()
    return folder / "store"


def with_files(folder):
    for name, content in NOTES.items():
        path = folder / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "store"


def a_file(folder):
    (folder / "store").write_text("mine")
    return folder / "store"


def a_dangling_link(folder):
    (folder / "store").symlink_to(folder / "unmounted" / "store")
    return folder / "store"


@pytest.mark.parametrize("place", [missing, empty, with_files, a_file, a_dangling_link])
@pytest.mark.parametrize("command", READERS)
def test_read_no_store_is_refused(capfd, tmp_path, monkeypatch, command, place):
    (tmp_path / "inputs").mkdir()
    monkeypatch.chdir(tmp_path / "inputs")
    for name in ("in", "2026-01-01"):
        parquet(tmp_path / "inputs" / f"{name}.parquet")
    root = place(tmp_path)
    before = tree_digest(tmp_path)
    outcome = call(capfd, *READERS[command], "--store", root)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert str(root.resolve()) in outcome.err
    assert tree_digest(tmp_path) == before


@pytest.fixture
def fresh_clients():
    """A file system of its own: fsspec keeps one for all, which remembers where its server was."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("command", ["runs", "sql", "repair"])
def test_read_unreachable_url_is_refused(capfd, tmp_path, monkeypatch, fresh_clients, command):
    with socket.socket() as closed:  # bound and never listening: it refuses
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("NNBUILD_STAGING_DIR", str(tmp_path / "workshop"))
        root = f"s3://unreachable-{command}/store"
        outcome = call(capfd, *READERS[command], "--store", root)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert root in outcome.err
    assert not (tmp_path / "workshop").exists()


def test_read_empty_bucket_is_refused(capfd, s3_store):
    outcome = call(capfd, "runs", "--store", s3_store)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert f"no store at {s3_store}" in outcome.err


def test_read_table_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        nnbuild.read_table(tmp_path / "store", "runs")


def test_marker_pipe_is_refused(capfd, tmp_path):
    import os

    os.mkfifo(tmp_path / "store.json")
    outcome = call(capfd, "runs", "--store", tmp_path)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "not a regular file" in outcome.err


@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "folder of the user's"])
def test_bad_input_keeps_folder(capfd, tmp_path, small_config, existing):
    root = tmp_path / "store"
    if existing:
        with_files(tmp_path)
    before = tree_digest(tmp_path)
    run = nnbuild.open_run(small_config, root)
    assert Store(root).exists()
    Store(root).discard(run)
    assert tree_digest(tmp_path) == before


def test_bad_input_keeps_empty_folder(tmp_path, small_config):
    root = empty(tmp_path)
    run = nnbuild.open_run(small_config, root)
    Store(root).discard(run)
    assert list(root.iterdir()) == []


def test_discard_store_in_use_is_kept(tmp_path, small_config):
    first, second = (nnbuild.open_run(small_config, tmp_path / "store") for _ in range(2))
    Store(tmp_path / "store").discard(first)
    assert Store.open(tmp_path / "store").unfinished_runs()[0].run_id == second.run_id


def test_store_id_is_stable(tmp_path):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    one.create()
    other.create()
    assert one.id != other.id
    assert one.create() == []
    assert Store(tmp_path / "one").id == one.id
    (tmp_path / "one" / "store.json").write_text('{"schema_version": "1"}')
    assert Store.open(tmp_path / "one").id is None
