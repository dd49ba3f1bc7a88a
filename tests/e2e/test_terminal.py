"""Ctrl-C typed in a real terminal, whose kernel signals the whole foreground process group."""

import os
import shutil
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real_server import until
from terminal import CTRL_C, terminal

from nnbuild.store import Store

SECONDS_TO_STOP = 5.0
ROWS = 3_000_000


@pytest.fixture
def environment(tmp_path, prefect_home):
    """No server is configured, and Prefect has a folder of its own."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    home = shutil.copytree(prefect_home, tmp_path / "prefect")
    return given | {"PREFECT_HOME": str(home)}


def stopped(program, hint):
    """Type Ctrl-C, and check how the program ends."""
    began = time.monotonic()
    program.press(CTRL_C)
    assert program.wait(60) == 130, program.screen[-2000:]
    seconds = time.monotonic() - began
    assert hint in program.screen
    assert "Traceback" not in program.screen
    assert "Error" not in program.screen
    assert program.left() == []
    assert seconds < SECONDS_TO_STOP
    return program.screen


def is_over(process):
    """Whether a process has ended, whether or not its parent has taken note of it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def endless(folder, store):
    return [
        *("run", "--dataset", folder, "--model", "lab", "--epochs", 100_000),
        *("--batch-size", 8, "--store", store),
    ]


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.0, 4.0])
def test_ctrl_c_at_start_exits_at_once(tmp_path, small_folder, environment, seconds):
    with terminal(*endless(small_folder, tmp_path / "s"), environment=environment) as program:
        program.wait_for("starting Prefect")
        program.read_for(seconds)  # into the imports, and the start of the server
        stopped(program, "nnbuild: stopped")
    if seconds == 0:  # later it depends on the machine
        assert not Store(tmp_path / "s").unfinished_runs()


@pytest.mark.parametrize("mark", ["training and", "epoch 20/"])
def test_ctrl_c_in_a_run_says_how_to_resume(tmp_path, small_folder, environment, mark):
    with terminal(*endless(small_folder, tmp_path / "s"), environment=environment) as program:
        program.wait_for(mark)
        screen = stopped(program, "nnbuild run --resume")
    (waiting,) = Store(tmp_path / "s").unfinished_runs()
    assert f"--resume {waiting.run_id}" in screen


def test_ctrl_c_after_server_died_does_not_wait(tmp_path, small_folder, environment):
    with terminal(*endless(small_folder, tmp_path / "s"), environment=environment) as program:
        program.wait_for("epoch 3/")
        children = program.process.children(recursive=True)
        (server,) = [each for each in children if "server_process" in " ".join(each.cmdline())]
        server.kill()
        until(lambda: is_over(server), 10, "end of the server")
        stopped(program, "nnbuild run --resume")


def test_ctrl_c_in_scoring_says_how_to_resume(tmp_path, store, environment):
    images = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(ROWS * 64, np.uint8)), 64)
    pq.write_table(pa.table({"image": images}), tmp_path / "in.parquet")
    arguments = ["score", "--input", tmp_path / "in.parquet", "--store", store.root]
    with terminal(*arguments, "--engine", "keras", environment=environment) as program:
        program.wait_for(f"of {ROWS:,} rows")
        stopped(program, "nnbuild score --resume")


@pytest.mark.parametrize("mark", ["serving", "epoch 2/"])
def test_ctrl_c_in_serve_leaves_no_process(tmp_path, small_folder, real_prefect, mark):
    settings = {"dataset.name": f'"{small_folder}"', "model.name": '"lab"', "training.epochs": 9999}
    options = [each for key, value in settings.items() for each in ("--set", f"{key}={value}")]
    arguments = ["serve", "--interval", 2, "--catch-up", *options, "--store", tmp_path]
    with terminal(*arguments, environment=real_prefect.environment) as program:
        program.wait_for(mark)
        stopped(program, "nnbuild: stopped")
