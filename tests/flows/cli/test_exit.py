"""How the process of a command ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnbuild.store import Store

THREAD = """
import atexit, sys, threading
from pydantic import BaseModel, TypeAdapter, field_validator

class Row(BaseModel):
    value: int

    @field_validator("value")
    @classmethod
    def check(cls, value):
        return sum(range(2000)) and value

def validate():
    while True:
        TypeAdapter(list[Row]).validate_python([{"value": each} for each in range(1000)])

threading.Thread(target=validate, daemon=True).start()

from flows.cli import main
invoke = main.invoke

def invoke_and_register(arguments):
    atexit.register(print, "at exit")
    return invoke(arguments)

main.invoke = invoke_and_register
main.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("--nonsense", 2)])
def test_command_ends_beside_a_thread_in_native_code(argument, code):
    done = subprocess.run(
        [sys.executable, "-c", THREAD, argument], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stdout.splitlines()[-1:] == ["at exit"]
    assert "FATAL" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "--json"],
        ["sql", "select 1"],
        ["sql", "select 1", "--csv"],
        ["sql", "select * from range(100000)", "--csv"],
    ],
    ids=" ".join,
)
def test_full_disk_behind_stdout_is_one_line(tmp_path, arguments, unbuffered):
    Store(tmp_path / "store").create()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "flows.cli.main", *arguments),
                *("--store", str(tmp_path / "store")),
            ],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": unbuffered},
            cwd=Path(__file__).parents[3],
        )
    assert done.stderr == (
        "nnbuild: cannot write to standard output: No space left on device; free some space\n"
    )
    assert done.returncode == 2
    assert list(scratch.iterdir()) == []
