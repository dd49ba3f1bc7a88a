"""Short form of `benchmarks/fuzz.py`: a coverage-guided fuzzer only causes nnbuild's errors."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has no wheel for this machine")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("parser", ["idx", "manifest", "picture"])
def test_fuzzed_files_are_harmless(parser):
    command = [sys.executable, "benchmarks/fuzz.py", parser, "--seconds", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "number_of_executed_units" in done.stderr
