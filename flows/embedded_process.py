"""The process of an embedded Prefect server: start it, configure it, explain why it ended.

Prefect's own embedded server runs in our process group, with the current folder on its import path.
Ctrl-C in a terminal reaches the whole group, so that server dies first, and the client retries a
closed port for minutes. Our server has a session of its own, and reports why it cannot start.
"""

import atexit
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from flows.prefect_database import AUTOMATIONS_OFF, settings_for_quick_start
from nnbuild.errors import ConfigError

_SCRIPT = Path(__file__).with_name("server_process.py")

SECONDS_TO_START = 180.0
"""A new database takes 12 s, and several times as long on a busy machine."""
SECONDS_TO_STOP = 20.0
"""More than `server_process.SECONDS_TO_SHUT_DOWN`, after which the server ends by itself."""
_CLIENT_SETTINGS = {
    "PREFECT_CLIENT_MAX_RETRIES": "3",  # loopback has no outages
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",  # one Prefect runs both
}
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}
_given_up = threading.Event()


class ServerProcess:
    """The process of the embedded server, its port and its output."""

    current: "ServerProcess | None" = None

    def __init__(self) -> None:
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        self.settings: Any = None
        self._answered = False
        self._settled = threading.Event()
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
            self._port = listening.getsockname()[1]
            self.process = subprocess.Popen(  # noqa: S603  (our own file, by our own Python)
                [sys.executable, "-P", str(_SCRIPT), str(listening.fileno())],
                # The checks of types by py-key-value, which it imports, take 0.15 s of its start.
                env={"PY_KEY_VALUE_DISABLE_BEARTYPE": "true", **os.environ, **_SAFE_PATH},
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it
            )
        # The end of its input ends the server, also if this process is killed.
        self._lifeline = self.process.stdin
        atexit.register(self.stop)
        for task in (self._watch, self._wait_for_answer):
            threading.Thread(target=task, name="prefect-server-watch", daemon=True).start()

    @classmethod
    def get(cls) -> "ServerProcess":
        """Return the process of this process's server; start it if it is not running."""
        if cls.current is None or cls.current.process.poll() is not None:
            cls.current = cls()
        return cls.current

    @classmethod
    def configured(cls, settings: Any) -> "ServerProcess":
        """Return the server of this process, with these settings if it had none."""
        if not settings.server.ephemeral.enabled:
            cls.stop_unused()
            raise ConfigError(
                "no Prefect server is configured, and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE is "
                "false; set PREFECT_API_URL to a server, or remove that setting"
            )
        server = cls.get()
        if server.settings is None:
            server.configure(settings)
        server.publish(settings)
        return server

    @classmethod
    def stop_unused(cls) -> None:
        """Stop a server that was started early, but is not needed."""
        if cls.current is not None and cls.current.settings is None:
            cls.current.stop()
            cls.current = None

    def configure(self, settings: Any) -> None:
        """Give the process its environment; it becomes a server then."""
        self.settings = settings
        environment = _server_environment(settings)
        self._has_automations = AUTOMATIONS_OFF.items().isdisjoint(environment.items())
        if self._lifeline is not None:
            with suppress(BrokenPipeError):  # it has exited, which `wait_until_ready` reports
                self._lifeline.write(json.dumps(environment).encode() + b"\n")
                self._lifeline.flush()

    def publish(self, settings: Any) -> None:
        """Configure this server as Prefect's, for this process and its children."""
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{self._port}/api"
        for name, value in _CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        if not settings.server.api.csrf_protection_enabled:
            os.environ.setdefault("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", "false")
        secret = settings.server.api.auth_string
        if secret and not settings.api.auth_string:
            os.environ["PREFECT_API_AUTH_STRING"] = secret.get_secret_value()
        import prefect.context

        prefect.context.refresh_global_settings_context()
        flows = prefect.context.get_settings_context().settings.flows
        if not (self._has_automations or "heartbeat_frequency" in flows.model_fields_set):
            # At the end of a flow run Prefect waits up to 1 s for the thread that sends heartbeats,
            # which are for automations. No environment variable can switch them off.
            flows.heartbeat_frequency = None

    def wait_until_ready(self) -> None:
        """Wait until the server answers.

        Raises:
            ConfigError: The server exited, or did not answer in time.
        """
        self._settled.wait(SECONDS_TO_START)
        if self.process.poll() is not None:
            raise ConfigError(_explanation(self._output(), _database_name(self.settings)))
        if not self._answered:
            raise ConfigError(
                f"Prefect's embedded server did not start within {SECONDS_TO_START:g} s "
                f"(database: {_database_name(self.settings)}); see `nnbuild doctor`"
            )

    def _wait_for_answer(self) -> None:
        """Wait for the server's first answer, in the queue of the connections to its port.

        FastAPI prepares routes when it searches them, in their order. That of the CSRF token is
        after those that a flow needs, which are so prepared while this process imports TensorFlow.
        """
        while not self._settled.wait(0.05):
            if _answers(self._port):
                self._answered = True
                self._settled.set()

    def _watch(self) -> None:
        """Send nothing more to the server after it has exited by itself."""
        self.process.wait()
        self._settled.set()
        if self.is_lost():
            give_up_on_server()

    def is_lost(self) -> bool:
        """Return whether the server was in use, and has exited by itself."""
        in_use = self.settings is not None and self._lifeline is not None
        return in_use and self.process.poll() is not None

    def _output(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        """Stop the server after it has stored what it received."""
        if self._lifeline is None:
            return
        lifeline, self._lifeline = self._lifeline, None
        with suppress(BrokenPipeError):
            lifeline.close()
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def _server_environment(settings: Any) -> dict[str, str]:
    """Return the server's environment: our settings, the safe path, and no API URL."""
    import prefect

    url = settings.server.database.connection_url.get_secret_value()
    quick = settings_for_quick_start(url, Path(prefect.__file__).parent)
    # What the user has set takes precedence over a quick start.
    variables = {**quick, **os.environ, **settings.to_environment_variables(exclude_unset=True)}
    variables.pop("PREFECT_API_URL", None)
    return variables | {"PREFECT_UI_ENABLED": "0"} | _SAFE_PATH


def _database_name(settings: Any) -> str:
    """Return the path or the URL of Prefect's database, without a password."""
    from sqlalchemy import make_url

    url = make_url(settings.server.database.connection_url.get_secret_value())
    return url.database or str(url) if url.drivername.startswith("sqlite") else str(url)


_EXPLANATIONS = {
    "Can't locate revision": (
        "Prefect's database {database} was created by a newer Prefect; "
        "upgrade Prefect, or set PREFECT_HOME to another folder"
    ),
    "not a database": (
        "Prefect's database {database} is damaged; "
        "move it away (a new one is created), or set PREFECT_HOME to another folder"
    ),
    "database is locked": (
        "Prefect's database {database} is locked by another process; "
        "end that process, or set PREFECT_HOME to another folder"
    ),
}
_EXPLANATIONS["malformed"] = _EXPLANATIONS["not a database"]


def _explanation(output: str, database: str) -> str:
    """Return in one line why the server exited."""
    for mark, text in _EXPLANATIONS.items():
        if mark in output:
            return text.format(database=database)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [
        line for line in lines if "Error" in line and not line.startswith(("ERROR:", "File "))
    ]
    reason = (errors or lines or ["no output"])[-1][:300]
    return (
        f"Prefect's embedded server exited while starting ({reason}; database: {database}); "
        "see `nnbuild doctor`"
    )


def _answers(port: int) -> bool:
    """Send the server a request, directly, without a proxy; any answer shows that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_START)
    try:
        connection.request("GET", "/api/csrf-token")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    else:
        return True
    finally:
        connection.close()


def embedded_server_is_lost() -> bool:
    """Return whether the embedded server of this process has exited."""
    current = ServerProcess.current
    return current is not None and current.is_lost()


def give_up_on_server() -> None:
    """Stop retrying requests to the server, and send it no more log lines."""
    import prefect.context

    _given_up.set()
    os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "0"
    os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
    prefect.context.refresh_global_settings_context()


def has_given_up_on_server() -> bool:
    """Return whether the server has been given up, so that nothing more will be sent to it."""
    return _given_up.is_set()
