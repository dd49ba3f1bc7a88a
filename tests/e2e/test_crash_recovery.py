"""The short form of the soak: real processes are killed, resumed, and end like one that was not."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_real_processes_that_are_killed_end_the_same():
    command = [
        sys.executable,
        "benchmarks/crash_recovery.py",
        "--kills",
        "5",
        "--seed",
        "1",
        "--runs-in-one-process",
        "0",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told["kills"] >= 5
    assert told["identical"] == told["runs"] > 0
    assert (told["torn_reads"], told["trouble"]) == (0, [])
    assert told["rows_read"] > 0
