"""Files survive a power failure: they are flushed before they get their name, and it after."""

import os
from pathlib import Path

import pytest

from nnbuild.store.filesystem import publish_dir, write_bytes


@pytest.fixture
def events(monkeypatch):
    """What is flushed and what is moved, in order."""
    found = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def record_fsync(descriptor):
        found.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def recorded(move):
        def record_move(source, target):
            result = move(source, target)
            found.append(("move", Path(target)))
            return result

        return record_move

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", recorded(rename))
    monkeypatch.setattr(Path, "replace", recorded(replace))
    return found


def test_atomic_write_flushes_file_then_folder(tmp_path, events):
    path = tmp_path / "champion.json"
    write_bytes(path, b"{}")
    (flush, temporary), *rest = events
    assert (flush, temporary.parent) == ("flush", tmp_path)
    assert temporary != path
    assert temporary.suffix == path.suffix
    assert rest == [("move", path), ("flush", tmp_path)]
    assert path.read_bytes() == b"{}"


def test_publish_flushes_every_file_before_the_move(tmp_path, events):
    source, target = tmp_path / "staging" / "run", tmp_path / "tables" / "run"
    (source / "parts" / "deep").mkdir(parents=True)
    for name in ("a", "parts/b", "parts/deep/c"):
        (source / name).write_text(name)
    contents = {source, *source.rglob("*")}
    before = []
    assert publish_dir(source, target, before=lambda: before.extend(events))
    flushed = {path for event, path in before if event == "flush"}
    assert contents | {tmp_path} == flushed  # the store, in which the folder `tables` is new
    assert events[len(before) :] == [("move", target), ("flush", target.parent)]
    assert (target / "parts" / "deep" / "c").read_text() == "parts/deep/c"
