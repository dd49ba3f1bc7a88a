"""In any environment the embedded server starts, or one line says what to do."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys

import psutil
import pytest

PROGRAM = """
import sys
from flows import server_answer
from flows.embedded_server import EmbeddedServer
from nnbuild.errors import NnbuildError
server_answer.SECONDS_TO_ANSWER = float(sys.argv[1])
try:
    with EmbeddedServer() as server:
        pass
    print("ready", server.embedded)
except NnbuildError as error:
    print(error.exit_code, error)
"""
SECONDS = 300  # generous, for a busy machine
UNREACHABLE = "http://127.0.0.1:9/api"


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the server in a new process, and returns what it printed."""

    def run(seconds=10, **variables):
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PREFECT_") and "PROXY" not in name.upper()
        }
        environment = inherited | {"PREFECT_HOME": str(tmp_path / "home")} | variables
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, str(seconds)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            timeout=SECONDS,
        )
        assert "Traceback" not in done.stderr
        assert len(done.stdout.splitlines()) == 1, done.stdout
        return done.stdout

    return run


def database(home, content):
    home.mkdir()
    if isinstance(content, bytes):
        (home / "prefect.db").write_bytes(content)
        return
    with sqlite3.connect(home / "prefect.db") as connection:
        connection.executescript(content)
    connection.close()


def test_server_bypasses_proxies(start, tmp_path, prefect_home):
    shutil.copytree(prefect_home, tmp_path / "home")
    for name in ("json", "queue", "email", "socket"):  # not to be imported from the current folder
        (tmp_path / f"{name}.py").write_text("open('EXECUTED', 'w')")
    proxy = "http://127.0.0.1:9"
    printed = start(
        HTTP_PROXY=proxy,
        HTTPS_PROXY=proxy,
        ALL_PROXY="socks5://127.0.0.1:9",
        PREFECT_SERVER_API_AUTH_STRING="admin:secret",
    )
    assert printed == "ready True\n"
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            (
                "create table alembic_version (version_num varchar(32) not null);"
                "insert into alembic_version values ('ffffffffffff');"
            ),
            "newer Prefect",
        ),
        (bytes(range(256)) * 400, "damaged"),
    ],
    ids=["newer", "damaged"],
)
def test_unusable_database_is_named(start, tmp_path, content, says):
    database(tmp_path / "home", content)
    printed = start()
    assert printed.startswith("2 Prefect's database")
    assert says in printed
    assert str(tmp_path / "home" / "prefect.db") in printed
    assert "PREFECT_HOME" in printed


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"PREFECT_API_URL": UNREACHABLE}, ("PREFECT_API_URL", UNREACHABLE, "refused")),
        ({"PREFECT_API_URL": "foo"}, ("PREFECT_API_URL", "foo")),
        ({"PREFECT_HOME": "/proc/nope"}, ("PREFECT_HOME", "/proc/nope")),
        (
            {"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"},
            ("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "PREFECT_API_URL"),
        ),
        ({"PREFECT_LOGGING_LEVEL": "banana"}, ("Prefect's settings", "BANANA", "INFO")),
        (
            {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://u:pass@127.0.0.1:9/d"},
            ("127.0.0.1", "embedded server", "***"),
        ),
    ],
    ids=["refused", "no-url", "home", "not-allowed", "setting", "postgres"],
)
def test_unusable_environment_is_one_line(start, variables, says):
    printed = start(seconds=5, **variables)
    assert printed.startswith("2 ")
    assert all(each in printed for each in says), printed
    assert "pass" not in printed


def test_silent_server_is_given_up(start):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        assert "no answer within 1 s" in start(seconds=1, PREFECT_API_URL=url)


EARLY = """
import json, os, sys
from flows import embedded_server as embedded, server_answer
from nnbuild.errors import ConfigError
server_answer.SECONDS_TO_ANSWER = 1.0
embedded.start_server_early()
process = embedded.ServerProcess.current.process
print(process.pid, flush=True)
sys.stdin.readline()
os.environ.update(json.loads(sys.argv[1]))
try:
    with embedded.EmbeddedServer() as server:
        pass
    kept = embedded.ServerProcess.current.process is process
    print("ready", server.embedded, kept, process.poll())
except ConfigError as error:
    print(embedded.ServerProcess.current, process.poll(), error)
"""


@pytest.fixture
def early(tmp_path):
    """Return a function that starts a program whose server starts before its settings are known."""
    programs = []

    def begin(**variables):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
        }
        program = subprocess.Popen(
            [sys.executable, "-P", "-c", EARLY, json.dumps(variables)],
            env=environment | {"PREFECT_HOME": str(tmp_path / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        programs.append(program)
        return program, psutil.Process(int(program.stdout.readline()))

    yield begin
    for each in programs:
        each.kill()
        each.communicate()


def test_early_server_takes_later_settings(early, tmp_path):
    program, server = early(PREFECT_HOME=str(tmp_path / "later"))
    output, _ = program.communicate("\n", timeout=SECONDS)
    assert output == "ready True True None\n"
    assert (tmp_path / "later" / "prefect.db").exists()
    assert not (tmp_path / "home").exists()
    psutil.wait_procs([server], timeout=SECONDS)
    assert not server.is_running()


def test_early_server_ends_if_another_is_configured(early, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "profiles.toml").write_text(
        f'active = "own"\n[profiles.own]\nPREFECT_API_URL = "{UNREACHABLE}"\n'
    )
    program, _ = early()
    output, _ = program.communicate("\n", timeout=SECONDS)
    assert output.startswith("None 0 ")
    assert UNREACHABLE in output
    assert not (home / "prefect.db").exists()


def test_early_server_ends_with_killed_program(early):
    program, server = early()
    program.kill()
    program.wait(SECONDS)
    _, alive = psutil.wait_procs([server], timeout=SECONDS)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
