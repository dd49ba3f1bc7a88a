"""`benchmarks/scoring_scale.py` measures on a machine without TensorFlow and Prefect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("tensorflow", "keras", "prefect", "tf2onnx")


@pytest.fixture
def environment(tmp_path):
    """Return an environment in which every process fails to import the heavy libraries."""
    for name in HEAVY:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


def run(environment, *options):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "scoring_scale.py", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_scale_program_imports_nothing_heavy(environment, tmp_path):
    inputs = ("jpeg-folder", "raw-convnet")
    options = ["--rows=20", "--rounds=1", "--cores=1", f"--folder={tmp_path}", "--json"]
    done = run(environment, *options, f"--inputs={','.join(inputs)}")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])["inputs"]
    assert tuple(measured) == inputs
    for (result,) in measured.values():
        assert result["job_rows_per_second"] == result["processes_rows_per_second"] > 0
        assert result["job_vs_first"] == 1 > result["job_vs_alone"] > 0


def test_scale_program_bad_core_count_refused(environment):
    done = run(environment, "--cores=0,1")
    assert done.returncode == 2
    assert "expected numbers from 1 to" in done.stderr.splitlines()[-1]
