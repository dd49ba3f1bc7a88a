"""Test lock files: exclusive, released with their process, and never followed through a link."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

from nnbuild.errors import LockedError, StoreError
from nnbuild.store import locks

HOLDING = """
import sys
from pathlib import Path
from nnbuild.errors import LockedError
from nnbuild.store import locks
with locks.claim(Path(sys.argv[1]), {"score_id": "theirs"}, lambda _: LockedError("held")):
    print("held", flush=True)
    sys.stdin.read()
"""


def refusal(holder):
    return LockedError(f"{holder.record.get('score_id')} by {holder.process}")


def claim(path, score_id="mine"):
    return locks.claim(path, {"score_id": score_id}, refusal)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock `lock`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_claim_is_exclusive_and_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "folders" / "lock"
    assert locks.holder(path) is None
    with claim(path):
        assert locks.holder(path).record["score_id"] == "mine"
        with pytest.raises(LockedError, match=r"mine by process \d+ on "), claim(path, "other"):
            pass
        assert locks.holder(path).record["score_id"] == "mine"
    assert locks.holder(path) is None
    assert not list(tmp_path.iterdir())
    with claim(path, "other"):
        assert locks.holder(path).record["score_id"] == "other"


def test_claim_folder_in_use_is_kept(tmp_path):
    with claim(tmp_path / "new" / "lock"):
        (tmp_path / "new" / "file").touch()
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["file"]


def test_claim_holder_killed_is_released(tmp_path, other):
    path = tmp_path / "lock"
    with pytest.raises(LockedError, match=f"theirs by process {other.pid} "), claim(path):
        pass
    assert locks.holder(path).record["score_id"] == "theirs"
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert path.exists()
    assert locks.holder(path) is None
    with claim(path):
        assert locks.holder(path).record["score_id"] == "mine"
    assert not path.exists()


def test_claim_lock_removed_is_recreated(tmp_path, monkeypatch):
    """The claim has opened the file that is removed before it can lock it."""
    path, opened = tmp_path / "lock", locks._opened
    path.touch()

    def open_then_lose(path):
        file = opened(path)
        monkeypatch.setattr(locks, "_opened", opened)
        assert locks.remove_if_free(path)
        return file

    monkeypatch.setattr(locks, "_opened", open_then_lose)
    with claim(path):
        assert locks.holder(path).record["score_id"] == "mine"
        assert not locks.remove_if_free(path)
        with pytest.raises(LockedError), claim(path):
            pass
    assert not locks.remove_if_free(path)


def test_remove_keeps_a_new_file(tmp_path, monkeypatch):
    """Another process has replaced the file between the look at it and the lock on it."""
    path, flock = tmp_path / "lock", locks.fcntl.flock
    path.touch()

    def lose_then_lock(file, operation):
        path.unlink()
        path.write_text("theirs")
        flock(file, operation)

    monkeypatch.setattr(locks.fcntl, "flock", lose_then_lock)
    assert not locks.remove_if_free(path)
    assert path.read_text() == "theirs"


@pytest.mark.parametrize("is_opened_before", [False, True])
def test_lock_of_run_that_was_just_ended_is_refused(tmp_path, monkeypatch, is_opened_before):
    """The holder removes the folder before or after another process has opened its lock file."""
    folder, flock = tmp_path / "staging" / "score-1", locks.fcntl.flock
    folder.mkdir(parents=True)

    def lose_then_lock(file, operation):
        shutil.rmtree(folder)
        flock(file, operation)

    if is_opened_before:
        monkeypatch.setattr(locks.fcntl, "flock", lose_then_lock)
    else:
        folder.rmdir()
    ended = pytest.raises(LockedError, match="another process ended scoring job 1 a moment ago")
    with ended, locks.lock(folder):
        pass
    assert not folder.exists()


def test_lock_in_store_that_is_gone_names_the_file(tmp_path):
    with (
        pytest.raises(StoreError, match=r"cannot lock .*: No such file") as caught,
        locks.lock(tmp_path / "staging" / "score-1"),
    ):
        pass
    assert not isinstance(caught.value, LockedError)


@pytest.mark.parametrize("take", [claim, lambda path: locks.lock(path.parent)])
def test_lock_during_test_succeeds(tmp_path, monkeypatch, take):
    """A look holds the lock for an instant."""
    import fcntl

    path = tmp_path / "lock"
    path.touch()
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(locks.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with take(path):
            assert locks.holder(path).record["pid"] == str(os.getpid())


@pytest.mark.parametrize("content", [b"", b"no json", b"[1]", b"{}", b'{"pid": "x"}', b"\xff"])
def test_holder_unreadable_is_unnamed(tmp_path, content):
    path = tmp_path / "lock"
    with claim(path):
        path.write_bytes(content)
        with pytest.raises(LockedError, match="None by another process"), claim(path):
            pass


def test_claim_symlink_is_refused(tmp_path):
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "lock").symlink_to("secret")
    with pytest.raises(StoreError), claim(tmp_path / "lock"):
        pass
    assert (tmp_path / "secret").read_text() == "kept"


def test_claim_where_no_file_can_be_made_is_refused(tmp_path, monkeypatch):
    """As in `/proc`, where folders exist and a new file is said to have none."""

    def fail(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(locks, "_opened", fail)
    with pytest.raises(StoreError, match="lock"), claim(tmp_path / "lock"):
        pass


def test_lock_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="lock"), claim(tmp_path / "file" / "lock"):
        pass
