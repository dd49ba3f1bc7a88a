"""Test what a process imports before its run begins."""

import gc
import os
import subprocess
import sys

import pytest

from nnbuild.runtime.lazy_imports import gc_paused

STARTED = """
import contextlib, sys
from flows.embedded_server import EmbeddedServer
from nnbuild.errors import ConfigError
with contextlib.suppress(ConfigError), EmbeddedServer():
    pass
print("prefect.server.api.server" in sys.modules)
"""


@pytest.mark.parametrize("searching", [True, False])
def test_gc_paused_restores_gc(searching):
    before = gc.isenabled()
    (gc.enable if searching else gc.disable)()
    try:
        with gc_paused():
            assert not gc.isenabled()
            kept = [[]]
        assert gc.isenabled() == searching
        assert not any(each is kept for each in gc.get_objects())
    finally:  # the objects remain exempt: all others that are would come back
        (gc.enable if before else gc.disable)()


def test_remote_server_imports_no_server():
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:1/api"}  # where nobody answers
    ended = subprocess.run(
        [sys.executable, "-c", STARTED], check=True, capture_output=True, text=True, env=environment
    )
    assert ended.stdout.split() == ["False"]


def test_arrow_starts_without_pandas_and_works_with_it():
    program = (
        "import sys\n"
        "from nnbuild.runtime.lazy_imports import start_arrow_without_pandas\n"
        "start_arrow_without_pandas()\n"
        "import numpy as np, pyarrow as pa\n"
        "table = pa.table({'a': [1, None], 'b': np.array(['x', None], dtype=object)})\n"
        "print('pandas' in sys.modules)\n"
        "import pandas as pd\n"
        "frame = table.to_pandas()\n"
        "print(pa.Table.from_pandas(frame).num_rows, pa.array(pd.Series([1, 2]))[1])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n2 2\n"


def test_preloaded_libraries_are_the_servers():
    program = (
        "import sys, uvicorn, prefect.server.api.server\n"
        "from flows.server_process import LIBRARIES\n"
        "print(*[each for each in LIBRARIES if each not in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "\n"), ended.stderr


TELEMETRY = """
import pathlib
from nnbuild.engines.onnx import OnnxEngine
print(*(each.name for each in pathlib.Path.home().rglob("onnxruntime.db")))
"""


def test_onnx_runtime_sends_no_telemetry(tmp_path):
    silenced = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in silenced}
    ended = subprocess.run(
        [sys.executable, "-c", TELEMETRY],
        check=True,
        capture_output=True,
        text=True,
        env=environment | {"HOME": str(tmp_path)},
    )
    assert ended.stdout.split() == []
