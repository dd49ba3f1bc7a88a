"""`nnbuild prune` and `delete`: what they print, ask and refuse."""

import errno
import os
import pty
import subprocess
import sys

import pytest
from command_line import call, tree_digest
from store_contents import StoreFiller, size

from nnbuild.store import Store, filesystem


@pytest.fixture
def filler(trained, tmp_path):
    return StoreFiller(tmp_path / "filled", Store(trained))


def test_prune_json_says_what_is_deleted(capfd, filler):
    runs = [filler.run(days_old=10 - night, data=night) for night in range(4)]
    filler.promote(runs[1])
    old_job = filler.job(runs[1], days_old=9)
    new_job = filler.job(runs[3], days_old=1)
    root = filler.store.root
    command = ("prune", "--keep", 1, "--scores", "--store", root, "--json")
    digest, before = tree_digest(root), size(root)
    planned = call(capfd, *command, "--dry-run").json
    assert tree_digest(root) == digest
    done = call(capfd, *command).json
    assert planned == done | {"dry_run": True}
    parts = [f"datasets/small/{number:064x}" for number in (0, 2)]
    assert done["deleted"] == {
        "runs": [runs[0], runs[2]],
        "jobs": [old_job],
        "parts": parts,
        "sweeps": [],
    }
    assert done["bytes"] == before - size(root) > 0
    assert done["kept"] == {runs[1]: "it is the champion of small"}
    assert filler.store.score_ids() == [new_job]


def test_prune_prints_plan(capfd, filler):
    runs = [filler.run(days_old=10 - night) for night in range(3)]
    filler.promote(runs[0])
    told = call(capfd, "prune", "--keep", 1, "--dry-run", "--store", filler.store.root)
    lines = [" ".join(line.split()) for line in told.out.splitlines()]
    assert f"run {runs[1]}" in lines
    assert f"{runs[0]} it is the champion of small" in lines
    assert lines[-1].startswith("would delete 1 run: ")
    done = call(capfd, "prune", "--keep", 1, "--store", filler.store.root)
    assert done.out.splitlines()[-1] == lines[-1].replace("would delete", "deleted")


def test_delete_asks_in_terminal(filler):
    runs = [filler.run(days_old=3 - night) for night in range(3)]
    program = "from flows.cli.main import main; main()"
    command = [sys.executable, "-c", program, "delete", runs[0], "--store", filler.store.root]
    for answer, left in (("n", runs), ("y", runs[1:])):
        ours, theirs = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            command, stdin=theirs, capture_output=True, text=True, check=False, timeout=60
        )
        for each in (ours, theirs):
            os.close(each)
        assert "Delete 1 run: " in done.stderr
        assert filler.store.run_ids() == left
        assert done.returncode == (1 if answer == "n" else 0)
    assert "deleted 1 run: " in done.stdout


UNKNOWN = "20200101T000000000Z-000000"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune",), "give the number of runs to keep"),
        (("prune", "--scores", "--prefect"), "give the number of runs to keep"),
        (("prune", "--keep", 0), "'0' should be greater than or equal to 1"),
        (("prune", "--keep", -3), "'-3' should be greater than or equal to 1"),
        (("prune", "--keep", "many"), "many"),
        (("prune", "--keep", 1, "--keep-days", 0), "'0' should be greater than or equal to 1"),
        (("delete",), "Missing argument"),
        (("delete", UNKNOWN), f"no committed run or scoring job '{UNKNOWN}'"),
        (("delete", "../.."), "no committed run or scoring job '../..'"),
        (("delete", "mine"), "mine is a sweep, expected the ID of a run or a scoring job"),
    ],
)
def test_bad_input_is_one_line(capfd, filler, arguments, message):
    filler.promote(filler.run())
    filler.sweep("mine")
    digest = tree_digest(filler.store.root)
    told = call(capfd, *arguments, "--store", filler.store.root)
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    assert message in told.err
    assert tree_digest(filler.store.root) == digest


def test_read_only_store_is_one_line(capfd, filler, monkeypatch):
    for night in range(2):
        filler.run(days_old=3 - night)
    digest = tree_digest(filler.store.root)

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filesystem.os, "fsync", refuse)
    told = call(capfd, "prune", "--keep", 1, "--store", filler.store.root)
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    assert "Read-only file system; mount the store writable" in told.err
    assert len(filler.store.run_ids()) == 2
    monkeypatch.undo()
    assert call(capfd, "prune", "--keep", 1, "--store", filler.store.root).code == 0
    assert digest != tree_digest(filler.store.root)
