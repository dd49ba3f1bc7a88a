"""Test Ctrl-C and SIGTERM on the real program: checkpoint, advice, and resume."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from command_line import call
from run_values import values

from nnbuild.config.schema import RunConfig
from nnbuild.errors import Interrupted
from nnbuild.pipeline.run import retrain
from nnbuild.runtime.signals import deferred_signals, hard_timeout, timeout_stopped
from nnbuild.store import Store

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_ctrl_c_stops_at_once(number):
    before = signal.getsignal(
        signal.SIGINT
    )  # a shell that runs this in the background has it ignored
    with deferred_signals() as stop:
        assert stop() is None
        os.kill(os.getpid(), number)
        assert stop() == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_timeout_stopped_leaves_the_rest():
    """A run that waits for a person uses up none of its time."""
    with hard_timeout(1000, grace=10):
        running, _ = signal.getitimer(signal.ITIMER_REAL)
        with timeout_stopped():
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert running - 60 < left <= 1010
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with timeout_stopped():
        pass


@pytest.fixture(scope="module")
def straight(tmp_path_factory, small_folder):
    """The values of a run that was never stopped."""
    settings = {"dataset": {"name": str(small_folder)}, "model": {"name": "lab"}, "seed": 3}
    settings["training"] = {"epochs": 150, "batch_size": 4, "threads": 2}
    root = tmp_path_factory.mktemp("straight")
    run = retrain(RunConfig.model_validate(settings), root)
    return values(Store(root), run.run_id)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_stopped_run_resumes_to_same_bytes(capfd, tmp_path, small_folder, straight, number):
    command = [
        "run",
        "--dataset",
        str(small_folder),
        "--model",
        "lab",
        "--seed",
        "3",
        "--epochs",
        "150",
        "--batch-size",
        "4",
    ]
    command += ["--set", "training.threads=2", "--store", str(tmp_path / "store")]
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli.main", *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as program:
        lines = iter(program.stderr.readline, "")
        assert any(line.startswith("epoch 3/") for line in lines)
        program.send_signal(number)
        last = [line for line in lines if not line.startswith("epoch")][-1]
        assert program.wait(60) == 128 + number
    run_id = re.search(r"--resume (\S+)", last)[1]
    assert Store(tmp_path / "store").unfinished_runs()[0].run_id == run_id
    (listed,) = call(capfd, "runs", "--store", tmp_path / "store", "--json").json["runs"]
    assert (listed["run_id"], listed["status"]) == (run_id, "unfinished")
    assert 3 <= listed["epochs"] < 150
    other = call(capfd, "run", "--resume", run_id, "--epochs", 151, "--store", tmp_path / "store")
    assert other.code == 2
    assert "cannot change training.epochs from 150 to 151" in other.err
    retrain(store=tmp_path / "store", resume=run_id)
    assert values(Store(tmp_path / "store"), run_id) == straight


def kill_inside_a_library(number):
    """Be stopped in a library that fails with an error of its own then, like Prefect's engine."""
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        raise ValueError("Task run is not set")  # noqa: B904  (as the library does it)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize(
    "kill", [lambda number: os.kill(os.getpid(), number), kill_inside_a_library]
)
def test_signal_outside_fit_stops_at_once(
    tmp_path, small_config, small_run, monkeypatch, number, kill
):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("nnbuild.evaluation.evaluate", lambda *_: kill(number))
    interrupting = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted) as caught_error:
            retrain(small_config, tmp_path / "store")
    finally:
        signal.signal(signal.SIGINT, interrupting)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is before
    assert caught_error.value.exit_code == 128 + number
    run_id = Store(tmp_path / "store").unfinished_runs()[0].run_id
    assert f"--resume {run_id}" in caught_error.value.__notes__[0]
    retrain(store=tmp_path / "store", resume=run_id)
    expected = values(small_run, *small_run.run_ids())
    assert values(Store(tmp_path / "store"), run_id) == expected


def test_server_ends_with_killed_program(tmp_path, small_folder):
    command = [
        "run",
        "--dataset",
        str(small_folder),
        "--model",
        "lab",
        "--epochs",
        "5000",
        "--store",
        str(tmp_path),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli.main", *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as program:
        assert any(line.startswith("epoch 3/") for line in iter(program.stderr.readline, ""))
        servers = [
            each
            for each in psutil.Process(program.pid).children(recursive=True)
            if any("server_process" in word for word in each.cmdline())
        ]
        assert servers
        program.kill()
        _, alive = psutil.wait_procs(servers, timeout=60)
        assert alive == []
