"""Test runs on a failing disk: one clear error, a consistent store, and a resumable run."""

import errno
import os
from pathlib import Path

import pytest
from command_line import call
from run_values import values

from nnbuild.errors import StoreError
from nnbuild.pipeline.run import retrain
from nnbuild.store import Store


class Disk:
    """Lets so many flushes and renames happen, and fails the next."""

    def __init__(self, monkeypatch, kind):
        self.left, self.failed, self._kind = None, False, kind
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace")):
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, function):
        def call_or_fail(*arguments, **named):
            if self.left is not None:
                if self.left == 0:
                    self.failed = True
                    raise OSError(self._kind, os.strerror(self._kind))
                self.left -= 1
            return function(*arguments, **named)

        return call_or_fail


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_run_disk_failure_is_resumable(tmp_path, small_config, small_run, monkeypatch, kind):
    expected = values(small_run, *small_run.run_ids())
    disk = Disk(monkeypatch, kind)
    store = Store(tmp_path / "store")
    failures, allowed, resume = 0, 0, None
    while True:
        disk.left, disk.failed = allowed, False
        try:
            done = retrain(None if resume else small_config, store.root, resume=resume)
            break
        except StoreError as error:
            assert disk.failed
            assert os.strerror(kind) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        finally:
            disk.left = None
        failures += 1
        allowed = allowed * 2 if failures > 12 else allowed + 3
        assert store.read_table("history").num_rows in {0, 3 * 6}
        waiting = store.unfinished_runs()
        resume = waiting[0].run_id if waiting else None
        if (
            store.run_ids()
        ):  # the last failure was behind the row: only the promotion and the clearing were left
            done = None
            retrain(small_config, store.root)
            break
    assert failures > 5
    run_id = store.run_ids()[0]
    assert done is None or done.run_id == run_id
    assert values(store, run_id) == expected


def test_store_vanished_is_named(tmp_path, small_config, monkeypatch):
    import shutil

    from nnbuild import pipeline

    real = pipeline.fit_model

    def vanishing(run, *arguments, **named):
        shutil.rmtree(run.root)
        return real(run, *arguments, **named)

    monkeypatch.setattr("nnbuild.pipeline.training.fit_model", vanishing)
    with pytest.raises(StoreError) as caught:
        retrain(small_config, tmp_path / "store")
    assert str(tmp_path / "store") in str(caught.value)


def test_run_id_clock_set_back_keeps_order(tmp_path, small_config):
    from datetime import UTC, datetime, timedelta

    from nnbuild.pipeline.run import open_run

    now = datetime(2026, 5, 1, tzinfo=UTC)
    ids = [
        open_run(small_config, tmp_path, now=now - timedelta(days=days)).run_id
        for days in (0, 30, 10, 400)
    ]
    assert ids == sorted(ids)
    done = retrain(store=tmp_path, resume=ids[-1])
    row = Store(tmp_path).read_table("runs", done.run_id).to_pylist()[0]
    assert row["finished_at"] >= row["started_at"]


def test_run_without_tmpdir_waits(tmp_path, small_config, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match=r"nowhere.*\$TMPDIR"):
        retrain(small_config, tmp_path / "store")
    monkeypatch.undo()
    waiting = Store(tmp_path / "store").unfinished_runs()
    assert retrain(store=tmp_path / "store", resume=waiting[0].run_id).status == "succeeded"


def test_export_tmpdir_full_is_resumable(tmp_path, small_config, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/elsewhere/export")

    monkeypatch.setattr("nnbuild.pipeline.export.export_onnx", full)
    with pytest.raises(StoreError, match=r"export: No space.*\$TMPDIR"):
        retrain(small_config, tmp_path / "store")
    monkeypatch.undo()
    store = Store(tmp_path / "store")
    run_id = retrain(store=store.root, resume=store.unfinished_runs()[0].run_id).run_id
    assert (store.root / "runs" / run_id / "model.onnx").exists()


def test_unexpected_error_keeps_traceback(capfd, tmp_path, small_folder, monkeypatch):
    monkeypatch.setattr("nnbuild.evaluation.evaluate", lambda *_: 1 / 0)
    outcome = call(
        capfd,
        "run",
        "--dataset",
        small_folder,
        "--model",
        "lab",
        "--epochs",
        1,
        "--store",
        tmp_path / "store",
    )
    store = Store(tmp_path / "store")
    kept = store.root / "runs" / store.run_ids()[0] / "traceback.txt"
    assert outcome.code == 1
    assert [line for line in outcome.err.splitlines() if line.startswith("nnbuild:")] == [
        outcome.err.splitlines()[-1]
    ]
    assert "ZeroDivisionError" in outcome.err
    assert "Traceback" not in outcome.err
    assert str(kept) in outcome.err
    assert "ZeroDivisionError" in kept.read_text()
