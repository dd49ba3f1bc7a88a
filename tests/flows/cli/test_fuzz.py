"""Every option of every command with hostile values: one line, and nothing is changed."""

import contextlib
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest
from command_line import call, tree_digest
from hostile_text import HOSTILE
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli.app import load_commands

COMMANDS = load_commands().commands
# What a command needs so that only the value under test is wrong.
BASE = {
    "run": ["--dataset", "nowhere/at all"],
    "sweep": ["--dataset", "nowhere/at all", "--grid", "seed=1,2"],
    "score": ["--input", "nowhere/at all"],
    "serve": ["--set", "dataset.name='nowhere/at all'"],
    "export": ["champion", "--format", "onnx", "--output", "new.onnx"],
    "sql": ["select 1"],
    "compare": ["A", "B"],
    "report": ["nowhere"],
    "promote": ["nowhere"],
    "doctor": ["--repair", "--dry-run"],
}
# Any text is a path, so each accepted value is a whole run: a few texts and files are enough.
PATHS = {"--data-dir", "--dataset", "--mlflow"}
OUTPUTS = {"--html", "--output", "--parquet"}  # tests/store/test_outputs.py has those
NUMBERS = ["nan", "-1", "0", "1e400", str(2**70), "9" * 5000]


@pytest.fixture(scope="module")
def world(tmp_path_factory, trained):
    """A folder with a store, files of the user's, and everything that is not an ordinary file."""
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(trained, root / "store")
    (root / "mine.txt").write_text("mine")
    (root / "garbage.parquet").write_bytes(os.urandom(2000))
    (root / "empty").mkdir()
    os.mkfifo(root / "pipe.parquet")
    (root / "circle").symlink_to("circle")
    (root / "dangling.toml").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "s"))
    if os.geteuid() == 0:
        os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    return root


def special(root):
    """Files that are no folders, or cannot be opened at all."""
    return sorted(str(each) for each in root.iterdir() if each.name not in {"store", "empty"})


def values(root, option=""):
    """Texts, numbers, paths and special files that hardly any option expects."""
    if option in PATHS:
        return [*HOSTILE[:3], *special(root), "a\0b", ""]
    texts = [*HOSTILE[:8], *NUMBERS, *special(root), str(root / "empty")]
    return [*texts, "x" * 300, "s3://", "a\0b", ""]


def snapshot(root):
    """Every name, the kind of what it is, and the bytes of files."""
    kinds = {
        str(each.relative_to(root)): stat.S_IFMT(each.lstat().st_mode) for each in root.rglob("*")
    }
    return kinds, tree_digest(root / "store"), (root / "mine.txt").read_bytes()


def is_clean(found):
    """Whether a command did what it was told, or said in one line why it did not."""
    text = found.out + found.err
    if found.code not in {0, 1, 2} or "Traceback" in text or "\x1b" in text:
        return False
    if found.code == 2 and len(found.err.splitlines()) != 1:
        return False
    return "should not happen" not in found.err and (found.code != 2 or "nnbuild: " in found.err)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"version"}))
def test_hostile_values_are_one_line(capfd, monkeypatch, request, world, command):
    monkeypatch.chdir(world)
    if command == "run":  # what it takes is a run, each on the same server
        request.getfixturevalue("prefect_server")
        server = contextlib.nullcontext()
    else:  # without a server `serve` stops before it serves
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        server = temporary_settings(restore_defaults={PREFECT_API_URL})
    before = snapshot(world)
    base = [*BASE.get(command, [])]
    options = [
        option
        for parameter in COMMANDS[command].params
        if not getattr(parameter, "is_flag", False)
        for option in parameter.opts[:1]
        if option.startswith("--") and option not in OUTPUTS | {"--store"}
    ]
    attempts = [[*base, option, value] for option in options for value in values(world, option)]
    attempts += (
        [[value] for value in values(world)] if command not in {"doctor", "run", "serve"} else []
    )
    with server:
        answers = {
            tuple(arguments): call(capfd, command, *arguments, "--store", world / "store")
            for arguments in attempts
        }
    wrong = {each: found.err for each, found in answers.items() if not is_clean(found)}
    assert not wrong
    assert snapshot(world) == before
    assert not any(Path(world, name).exists() for name in ("nnbuild-store", "new.onnx"))
