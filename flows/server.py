"""Prefect's embedded server, started early: it boots in a process of its own while TensorFlow is imported here."""

import os
import threading
import time
from types import TracebackType
from typing import Self

# Our own lines are printed by the displays; Prefect's go to its database. An answer from outside is never waited for,
# and nobody outside is told of a run: Prefect would, and says so in a terminal before the first line of ours.
# A new database takes 12 s, and on a busy machine several times as long as Prefect would wait.
_SETTINGS = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}

_TRIES, _SECONDS_BETWEEN_TRIES = 3600, 0.05
_GUARDED: set[int] = set()  # the processes of servers that end with this one


class EarlyServer:
    """Imports Prefect and, if no server is configured, starts the embedded one without waiting for it."""

    def __init__(self) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._start, name="prefect-server", daemon=True)

    def __enter__(self) -> Self:
        # Here and not in the thread: two imports at once would only take turns, and the server would start late.
        import prefect.client.orchestration  # noqa: F401  (it takes seconds)
        from prefect.settings import PREFECT_API_URL

        self._thread.start()
        if (
            not PREFECT_API_URL.value()
        ):  # looking for an embedded server imports all of Prefect's: 2 s
            threading.Thread(
                target=_bind_to_this_process, name="prefect-server-guard", daemon=True
            ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.join()

    def _start(self) -> None:
        from prefect.client.orchestration import get_client

        try:
            with get_client(sync_client=True) as client:
                client.hello()
        except Exception as error:  # noqa: BLE001  (the flow will meet the same, and say it)
            self._error = error


def _bind_to_this_process() -> None:
    """End the embedded server when this process ends, however it does: Prefect sees to it only at a regular exit.

    A shell waits for the end of a pipe that this process alone holds open.
    """
    from prefect.server.api.server import SubprocessASGIServer

    for _ in range(_TRIES):
        started = [
            each.server_process for each in getattr(SubprocessASGIServer, "_instances", {}).values()
        ]
        for server in filter(None, started):
            if server.pid not in _GUARDED:
                _GUARDED.add(server.pid)
                _guard(server.pid)
            return
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _guard(pid: int) -> None:
    """Start the shell. The pipe's other end is never closed here: that is what the end of this process does."""
    theirs, _ours = os.pipe()
    silence = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    command = ["/bin/sh", "-c", f"read -r _; kill {pid}"]
    os.posix_spawn(
        "/bin/sh",
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 0), *silence],
        setsid=True,
    )
    os.close(theirs)
