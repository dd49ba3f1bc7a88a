"""Use an embedded Prefect server if none is configured: start it early, survive its loss."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from types import TracebackType
from typing import Self

from flows.embedded_process import ServerProcess, give_up_on_server
from flows.prefect_settings import SILENT, prepare_environment, read_settings
from flows.server_answer import SECONDS_TO_ANSWER_AT_STOP, require_answer, server_problem
from nnbuild.errors import Interrupted

_report: ContextVar[Callable[[Interrupted], int] | None] = ContextVar("report", default=None)


class EmbeddedServer:
    """Context manager that imports Prefect, and starts its server if none is configured.

    At the end of the block it waits until the server answers, unless the block raises. The server
    runs until the process ends.

    Attributes:
        embedded: Whether the server is embedded in this process, not a configured one.
        url: URL of the server's API.

    Raises:
        ConfigError: Prefect's settings, its database or the configured server are unusable.
    """

    def __enter__(self) -> Self:
        prepare_environment(SILENT)
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


def start_server_early() -> None:
    """Start the process of the embedded server if it is likely to be used.

    Until `EmbeddedServer` gives it its settings, which takes this process a second to read, the
    process imports libraries. If no embedded server is needed after all, it ends.
    """
    if not os.environ.get("PREFECT_API_URL"):
        with suppress(OSError):  # EmbeddedServer will report it
            ServerProcess.get()


def _import_and_start() -> ServerProcess | None:
    """Import Prefect's client, and start the server before the slower half of that import."""
    settings = read_settings()
    process = None if settings.api.url else ServerProcess.configured(settings)
    if process is None:
        ServerProcess.stop_unused()
    # Not in a thread: two imports at the same time would only take turns.
    import_module("prefect.client.orchestration")  # it takes seconds
    return process


@contextmanager
def exit_without_server(report: Callable[[Interrupted], int]) -> Iterator[None]:
    """End the process at once if a run is stopped in this block and the server is unreachable.

    Args:
        report: Function that reports the stop to the user and returns the exit code.
    """
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


@contextmanager
def prompt_stop() -> Iterator[None]:
    """Make a stop in this block take seconds at most, whether or not the Prefect server answers.

    Prefect reports the end of a run to its server. It retries each request for minutes, and at the
    interpreter's exit it waits for unsent log lines. A command whose server is still silent at the
    end of its run does not wait for that either.
    """
    from tasks.silent_server import is_silent

    try:
        yield
        if _report.get() and is_silent() and server_problem(SECONDS_TO_ANSWER_AT_STOP):
            give_up_on_server()
    except Interrupted as stop:
        if server_problem(SECONDS_TO_ANSWER_AT_STOP) is not None:
            if (report := _report.get()) is not None:
                _exit(report(stop))
            give_up_on_server()
        raise


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
