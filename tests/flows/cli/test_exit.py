"""How the process of a command ends."""

import subprocess
import sys

import pytest

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
