"""Runs with the embedded server: recorded in full, and finished also if the server ends."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

TASKS = [
    *("build", "calibrate", "check", "commit", "compile_network", "decide", "evaluate", "export"),
    *("fit", "load", "persist_history", "report", "score"),
]
STATES = ["Completed", "Pending", "Running"]
HEARTBEAT = "prefect.flow-run.heartbeat"


@pytest.fixture(scope="module")
def records(tmp_path_factory, small_folder):
    """What two runs left: the first created Prefect's database, the second found it up to date."""
    folder = tmp_path_factory.mktemp("embedded")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    }
    command = [
        *(sys.executable, "-m", "flows.cli.main", "run", "--dataset", str(small_folder)),
        *("--model", "lab", "--epochs", "2", "--batch-size", "16", "--store", str(folder / "s")),
    ]
    for _ in range(2):
        subprocess.run(
            command,
            env=environment | {"PREFECT_HOME": str(folder / "prefect")},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
        )
    with closing(sqlite3.connect(folder / "prefect" / "prefect.db")) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM flow_run ORDER BY created")]
        return [_record(connection, each) for each in ids]


def _record(connection, flow_run):
    def rows(query, *values):
        return connection.execute(query, (flow_run, *values)).fetchall()

    return {
        "flow run": rows("SELECT state_type FROM flow_run WHERE id = ?"),
        "states": rows(
            "SELECT task_run.task_key, task_run.state_name, group_concat(task_run_state.name) "
            "FROM task_run JOIN task_run_state ON task_run_state.task_run_id = task_run.id "
            "WHERE flow_run_id = ? GROUP BY task_run.id"
        ),
        "artifacts": sorted(rows("SELECT key, type FROM artifact WHERE flow_run_id = ?")),
        "logs": rows("SELECT count(*) FROM log WHERE flow_run_id = ?"),
        "events": dict(
            connection.execute(
                "SELECT event, count(DISTINCT events.id) FROM events JOIN event_resources AS about "
                "ON event_id = events.id WHERE about.resource_id = ? GROUP BY event",
                (f"prefect.flow-run.{flow_run}",),
            )
        ),
    }


@pytest.mark.parametrize("number", [0, 1], ids=["new-database", "known-database"])
def test_embedded_run_records_each_task(records, number):
    record = records[number]
    assert record["flow run"] == [("COMPLETED",)]
    assert sorted(key.rsplit("-", 1)[0] for key, _, _ in record["states"]) == TASKS
    for key, last, states in record["states"]:
        assert (last, sorted(states.split(","))) == ("Completed", STATES), key


def test_embedded_run_records_what_the_first_did(records):
    first, second = (each["events"] for each in records)
    assert records[0]["artifacts"] == records[1]["artifacts"]
    assert len(records[1]["artifacts"]) == second["prefect.artifact.created"] > 0
    assert all(each["logs"] > [(0,)] for each in records)
    # In a database without automations nothing listens to heartbeats.
    assert first.pop(HEARTBEAT, 0) >= 1
    assert _of_runs(first) == _of_runs(second)


def _of_runs(events):
    of_runs = ("prefect.flow-run.", "prefect.task-run.")
    return {name: count for name, count in events.items() if name.startswith(of_runs)}


def test_sweep_finishes_if_its_server_ends(tmp_path, small_folder):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    }
    command = [
        *(sys.executable, "-m", "flows.cli.main", "sweep", "--dataset", str(small_folder)),
        *("--model", "lab", "--grid", "training.epochs=2,3", "--store", str(tmp_path / "s")),
        "--json",
    ]
    with subprocess.Popen(
        command,
        env=environment | {"PREFECT_HOME": str(tmp_path / "prefect")},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        first = next(line for line in process.stderr if "epoch 1/2" in line)
        os.kill(_server_of(process.pid), signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 0, first + err
    assert "(its embedded server ended); the results are committed" in err
    result = json.loads(out.splitlines()[-1])
    assert [each["state"] for each in result["trials"]] == ["finished", "finished"]
    assert (result["status"], result["promoted"]) == ("succeeded", True)


def _server_of(process):
    """Return the process ID of the embedded server of a command."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"server_process.py" in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except OSError:  # it has ended in the meantime
            continue
    raise AssertionError("the command has no embedded server")
