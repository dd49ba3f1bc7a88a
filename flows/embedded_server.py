"""Prefect's server of one process: started early, explained if it cannot start, ended with us.

Prefect would start one by itself, in our process group and with the current folder on its import
path. Ctrl-C in a terminal reaches the whole group: that server died first, and the client retried a
dead port for minutes. This one has a session of its own, and reports why it cannot start.
"""

import atexit
import http.client
import io
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from contextvars import copy_context
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self

from pydantic import ValidationError

from nnbuild.errors import ConfigError, one_line
from nnbuild.runtime.credentials import has_credentials


def require_api_url_without_credentials() -> None:
    """Refuse credentials in the URL, wherever it is set: in the environment or in a profile of Prefect.

    Raises:
        ConfigError: With the setting that is for them.
    """
    from prefect.settings import PREFECT_API_URL

    if has_credentials(str(PREFECT_API_URL.value() or "")):
        raise ConfigError(
            "PREFECT_API_URL is a URL with credentials, which Prefect writes into its logs; "
            "remove them and set PREFECT_API_AUTH_STRING=user:password"
        )


_SETTINGS = {
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # it prints whole requests that were not answered
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # Nothing outside is notified of a run: Prefect would, and prints a notice before our first line.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
# Of a command that shows a run itself: Prefect's lines go to its database alone.
_SILENT = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SCRIPT = Path(__file__).with_name("server_process.py")

SECONDS_TO_START = 180.0
"""A new database takes 12 s, and several times as long on a busy machine."""
SECONDS_TO_ANSWER = 10.0
"""How long a configured server may take to answer a request; one that refuses may be starting."""
SECONDS_TO_STOP = 5.0
_SECONDS_BETWEEN_TRIES = 0.5
_STATUSES_OF_PROXIES = frozenset({502, 503, 504})  # while there is nothing behind them


class EmbeddedServer:
    """Import Prefect, and start its server if none is configured; wait for it when the block ends.

    The server stays for the rest of the process. A block that raises is not waited for.

    Attributes:
        embedded: Whether the server is ours, not a configured one.
        url: Where its API answers.

    Raises:
        ConfigError: Prefect's settings, its database or the configured server cannot be used.
    """

    def __enter__(self) -> Self:
        prepare_environment(_SILENT)
        self._process = _import_and_start()
        self.embedded = self._process is not None
        self.url = os.environ.get("PREFECT_API_URL", "")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        if self._process is None:
            require_answer()
        else:
            self._process.wait_until_ready()


def prepare_environment(settings: Mapping[str, str] = MappingProxyType({})) -> None:
    """Set what Prefect reads from the environment, for this process and for those it starts.

    Args:
        settings: More of Prefect's settings; what the user has set stays.

    Raises:
        ConfigError: `PREFECT_HOME` cannot be created or written.
    """
    for name, value in {**_SETTINGS, **settings}.items():
        os.environ.setdefault(name, value)
    logging.raiseExceptions = False  # or Prefect prints each log line that its server did not take
    bypass_proxies_for_loopback()
    _require_home()


def bypass_proxies_for_loopback() -> None:
    """Keep requests to this machine away from a proxy, whatever else the proxy is for."""
    listed = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = [each.strip() for each in listed.split(",") if each.strip()]
    value = ",".join([*hosts, *(each for each in _LOOPBACK if each not in hosts)])
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = value


def _require_home() -> None:
    """Create Prefect's folder; without one Prefect prints Python warnings and waits for minutes."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return
    except OSError as error:
        raise ConfigError(
            f"cannot write to Prefect's folder {home} ({error.strerror}); "
            "set PREFECT_HOME to a folder that can be written"
        ) from error


def _import_and_start() -> "_ServerProcess | None":
    """Import Prefect's client; start the server before the slower half of that import."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):  # where Prefect repeats what its exception says
            from prefect.settings import get_current_settings

            settings = get_current_settings()
    except Exception as error:
        raise ConfigError(
            f"cannot read Prefect's settings ({_first_reason(error)}); "
            "correct the PREFECT_… variables or the active profile"
        ) from error
    sys.stderr.write(printed.getvalue())
    require_api_url_without_credentials()
    process = None
    if not settings.api.url:
        process = _ServerProcess.of_this_process(settings)
    # Here and not in a thread: two imports at once would only take turns.
    import prefect.client.orchestration  # noqa: F401  (it takes seconds)

    return process


def _first_reason(error: Exception) -> str:
    """Return the first of pydantic's complaints, or the message of another error."""
    if not isinstance(error, ValidationError):
        return one_line(error)
    first = error.errors()[0]
    return (
        f"{error.title}: {'.'.join(map(str, first['loc']))} is {first['input']!r}: {first['msg']}"
    )


class _ServerProcess:
    """The server's process, its port, and what it printed."""

    running: "_ServerProcess | None" = None

    def __init__(self, settings: Any) -> None:
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        self._settings = settings
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
            self._port = listening.getsockname()[1]
            theirs, ours = os.pipe()
            self._lifeline: int | None = ours
            handed = (listening.fileno(), theirs)
            self.process = subprocess.Popen(  # noqa: S603  (our own file, by our own Python)
                [sys.executable, "-P", str(_SCRIPT), *map(str, handed)],
                env=_server_environment(settings),
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # a terminal's Ctrl-C is for us alone
            )
            os.close(theirs)
        atexit.register(self.stop)
        threading.Thread(target=self._watch, name="prefect-server-watch", daemon=True).start()

    @classmethod
    def of_this_process(cls, settings: Any) -> "_ServerProcess":
        """Start the server of this process, or return the one that runs already."""
        if not _ephemeral_allowed(settings):
            raise ConfigError(
                "no Prefect server is configured, and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE is false; "
                "set PREFECT_API_URL to a server, or remove that setting"
            )
        if cls.running is None or cls.running.process.poll() is not None:
            cls.running = cls(settings)
        cls.running.publish(settings)
        return cls.running

    def publish(self, settings: Any) -> None:
        """Make this server the configured one, for this process and its children."""
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{self._port}/api"
        os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")  # on loopback there is no outage
        secret = settings.server.api.auth_string
        if secret and not settings.api.auth_string:
            os.environ["PREFECT_API_AUTH_STRING"] = secret.get_secret_value()
        import prefect.context

        prefect.context.refresh_global_settings_context()

    def wait_until_ready(self) -> None:
        """Wait until the server answers.

        Raises:
            ConfigError: It ended, or did not answer in time.
        """
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ConfigError(_explanation(self._printed(), _database_name(self._settings)))
            if _is_healthy(self._port):
                return
            time.sleep(0.05)
        raise ConfigError(
            f"Prefect's embedded server did not start within {SECONDS_TO_START:g} s "
            f"(database: {_database_name(self._settings)}); see `nnbuild doctor`"
        )

    def _watch(self) -> None:
        """Stop talking to the server once it has ended by itself."""
        self.process.wait()
        if self._lifeline is not None:
            give_up_on_server()

    def _printed(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        """End the server; it writes what it has been sent first."""
        if self._lifeline is None:
            return
        os.close(self._lifeline)
        self._lifeline = None
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def _server_environment(settings: Any) -> dict[str, str]:
    """Return the server's environment: our settings, the safe path, and no server to ask."""
    given = {**os.environ, **settings.to_environment_variables(exclude_unset=True)}
    given.pop("PREFECT_API_URL", None)
    return given | {"PREFECT_UI_ENABLED": "0", "PYTHONSAFEPATH": "1"}


def _ephemeral_allowed(settings: Any) -> bool:
    return bool(settings.server.ephemeral.enabled)


def _database_name(settings: Any) -> str:
    """Return the path or the URL of Prefect's database, without a password."""
    from sqlalchemy import make_url

    url = make_url(settings.server.database.connection_url.get_secret_value())
    return url.database or str(url) if url.drivername.startswith("sqlite") else str(url)


_EXPLANATIONS = {
    "Can't locate revision": (
        "Prefect's database {database} was made by a newer Prefect; "
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


def _explanation(printed: str, database: str) -> str:
    """Return why the server ended, in one line."""
    for mark, text in _EXPLANATIONS.items():
        if mark in printed:
            return text.format(database=database)
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [
        line for line in lines if "Error" in line and not line.startswith(("ERROR:", "File "))
    ]
    reason = (errors or lines or ["it printed nothing"])[-1][:300]
    return (
        f"Prefect's embedded server ended while it started ({reason}; database: {database}); "
        "see `nnbuild doctor`"
    )


def _is_healthy(port: int) -> bool:
    """Ask the server directly; a proxy has no say here."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def embedded_server_is_lost() -> bool:
    """Return whether the embedded server of this process has ended."""
    running = _ServerProcess.running
    return running is not None and running.process.poll() is not None


def give_up_on_server() -> None:
    """Try each request to the server once from now on, and send it no log lines."""
    import prefect.context

    os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "0"
    os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
    prefect.context.refresh_global_settings_context()


def require_answer() -> None:
    """Ask the configured server, as the run is going to.

    Raises:
        ConfigError: It does not answer, or refuses us.
    """
    from prefect.settings import PREFECT_API_URL

    if (trouble := trouble_with_server(SECONDS_TO_ANSWER, starting=True)) is not None:
        raise ConfigError(
            f"the Prefect server at {PREFECT_API_URL.value()} cannot be used ({trouble}); "
            "start it, correct PREFECT_API_URL, or unset it to use the embedded server"
        )


def trouble_with_server(seconds: float, *, starting: bool = False) -> str | None:
    """Return why the configured server cannot be used, None if it can.

    Args:
        seconds: How long it may take to answer. Several attempts hide behind each request of the
            client, so that its own timeouts bound nothing.
        starting: Whether it may be just starting, and refuse connections at first.
    """
    if embedded_server_is_lost():
        return "the embedded server has ended"
    found: list[str | None] = []
    patience = seconds if starting else 0.0

    def ask() -> None:
        found.append(_trouble(seconds, patience))

    # With the caller's context, which can have Prefect's settings.
    asking = threading.Thread(target=copy_context().run, args=(ask,), daemon=True)
    asking.start()
    asking.join(seconds)
    return found[0] if found else f"no answer within {seconds:g} s"


def _trouble(seconds: float, patience: float) -> str | None:
    """Ask until the server answers, refuses us for good, or the patience is over."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    end = time.monotonic() + patience - _SECONDS_BETWEEN_TRIES
    while True:
        try:
            with (
                temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
                get_client({"timeout": seconds}, sync_client=True) as client,
            ):
                client.read_flows(limit=1)
        except Exception as error:  # noqa: BLE001  (whatever it is, the server cannot be used)
            if time.monotonic() > end or not _may_be_starting(error):
                return one_line(error) or type(error).__name__
            time.sleep(_SECONDS_BETWEEN_TRIES)
        else:
            return None


def _may_be_starting(error: Exception) -> bool:
    """Return whether a server that starts answers like this, or a proxy in front of one."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _STATUSES_OF_PROXIES
    return isinstance(error, httpx.ConnectError)
