"""Stop promptly, even if the Prefect server is unreachable."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flows.embedded_server import give_up_on_server, server_problem
from nnbuild.errors import Interrupted

SECONDS_TO_ANSWER = 2.0

_report: ContextVar[Callable[[Interrupted], int] | None] = ContextVar("report", default=None)


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
    """Let a stop in this block take seconds, whether or not the Prefect server answers.

    Prefect reports the end of a run to its server. It retries each request for minutes, and at the
    interpreter's exit it waits for unsent log lines.
    """
    try:
        yield
    except Interrupted as stop:
        if server_problem(SECONDS_TO_ANSWER) is not None:
            if (report := _report.get()) is not None:
                _exit(report(stop))
            give_up_on_server()
        raise


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
