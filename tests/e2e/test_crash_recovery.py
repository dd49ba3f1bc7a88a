"""A short crash test: runs whose process is killed and resumed end like undisturbed ones."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_killed_runs_end_the_same():
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
    result = json.loads(done.stdout)
    assert result["kills"] >= 5
    assert result["identical"] == result["runs"] > 0
    assert (result["torn_reads"], result["trouble"]) == (0, [])
    assert result["rows_read"] > 0
