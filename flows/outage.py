"""A stop does not wait for a Prefect server that is gone."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flows.embedded_server import give_up_on_server, trouble_with_server
from nnbuild.errors import Interrupted

SECONDS_TO_ANSWER = 2.0

_report: ContextVar[Callable[[Interrupted], int] | None] = ContextVar("report", default=None)


@contextmanager
def exit_without_server(report: Callable[[Interrupted], int]) -> Iterator[None]:
    """Let a stop in this block end the process at once if Prefect's server is gone.

    Args:
        report: Tell the user of the stop, and return the exit code.
    """
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


@contextmanager
def prompt_stop() -> Iterator[None]:
    """Let a stop in this block end within seconds, whether or not Prefect's server answers.

    Prefect reports the end of a run to its server. It tries each request again for minutes, and
    waits at the interpreter's exit for what was not sent.
    """
    try:
        yield
    except Interrupted as stop:
        if trouble_with_server(SECONDS_TO_ANSWER) is not None:
            if (report := _report.get()) is not None:
                _exit(report(stop))
            give_up_on_server()
        raise


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
