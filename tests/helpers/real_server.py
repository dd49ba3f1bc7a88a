"""A real Prefect server on loopback with its own database, and `nnbuild serve` connected to it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
QUICK = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PREFECT_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
}
"""Settings with shorter intervals than Prefect's defaults, for a server and its clients."""


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll a function until it returns a true value, and return that value.

    It waits nine times as long as an answer takes, from 0.2 s to 2 s: the processor is for what is
    waited for.

    Raises:
        TimeoutError: No true value within the time; the message names `what`.
    """
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        if value := condition():
            return value
        time.sleep(min(max(0.2, 9 * (time.monotonic() - began)), 2))
    raise TimeoutError(f"no {what} within {seconds} s")


@dataclass(frozen=True)
class Server:
    """A running Prefect server.

    Attributes:
        url: URL of its API.
        environment: Environment variables for processes that use it.
        process: Process of the server.
        client: Connection to it, which is kept: a new one costs more than most answers.
    """

    url: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    client: httpx.Client

    def ask(self, path: str, **body: Any) -> Any:
        """POST to the API, and retry while its database is locked."""

        def answer() -> httpx.Response | None:
            response = self.client.post(f"{self.url}{path}", json=body, timeout=90)
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        return until(answer, 120, f"answer to {path}").raise_for_status().json()

    def flow_runs(self, deployment: str, flow: str = "scheduled-retrain") -> list[dict[str, Any]]:
        """Return the flow runs of a deployment, ordered by their scheduled time.

        Prefect plans an interval's next hour in advance; what is neither due nor fetched from the
        server yet is left out.
        """
        due = {"before_": datetime.now(UTC).isoformat()}
        fetched = {"type": {"not_any_": ["SCHEDULED"]}}
        return self.ask(
            "/flow_runs/filter",
            deployments={"name": {"any_": [deployment]}},
            flows={"name": {"any_": [flow]}},
            flow_runs={"operator": "or_", "expected_start_time": due, "state": fetched},
            sort="EXPECTED_START_TIME_ASC",
        )

    def start(self, deployment: Mapping[str, Any], **options: Any) -> str:
        """Make a run of a deployment that is due now, and return its ID."""
        path = f"/deployments/{deployment['id']}/create_flow_run"
        return self.ask(path, state={"type": "SCHEDULED"}, **options)["id"]

    def delete_deployments(self) -> None:
        """Delete all deployments, whose schedules would keep the server busy."""
        for each in self.ask("/deployments/filter"):
            self.client.delete(f"{self.url}/deployments/{each['id']}", timeout=90)

    @contextmanager
    def serving(self, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """Run `nnbuild serve` with these arguments; stop it at the end of the block."""
        command = [sys.executable, "-m", "flows.cli.main", "serve", *map(str, arguments)]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                assert process.stdout.readline().startswith("serving "), process.poll()
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                _ended(process)


def create_database(home: Path) -> None:
    """Write the empty database of a server into its folder."""
    program = (
        "import asyncio; from prefect.server.database import provide_database_interface as found; "
        "asyncio.run(found().create_db())"
    )
    subprocess.run([sys.executable, "-c", program], env=_environment(home), check=True)


def _environment(home: Path) -> dict[str, str]:
    """Return the environment variables of this process without its settings of Prefect."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    }
    return inherited | {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


@contextmanager
def real_server(home: Path, settings: Mapping[str, str] = QUICK) -> Iterator[Server]:
    """Start a server, and stop it at the end of the block.

    Args:
        home: Folder of the server; an existing database in it is used.
        settings: Prefect settings for the server and for processes with its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = _environment(home) | {
        "PREFECT_API_URL": url,
        "PYTHONPATH": str(ROOT),
        **settings,
    }
    program = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    log = (home / "server.log").open("a")
    with (
        log,
        httpx.Client(trust_env=False) as client,
        subprocess.Popen(program, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            until(lambda: _healthy(client, url), 120, "Prefect server")
            yield Server(url, environment, process, client)
        finally:
            process.terminate()
            process.wait(60)


def _ended(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a process; kill it after a minute, because Popen would wait forever."""
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def _healthy(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False
