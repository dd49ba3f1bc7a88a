"""Isolate reports to other systems: if they fail, the run continues."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nnbuild.errors import NnbuildError
from nnbuild.runtime.text import join_lines, sanitize

_MAX_LENGTH = 300


@contextmanager
def outward(what: str, warn: Callable[[str], object]) -> Iterator[None]:
    """Turn any exception of the block into a warning, so that a report never fails a run.

    `KeyboardInterrupt`, `SystemExit` and Prefect's signals are requests to stop, and are raised.

    Args:
        what: Name of the report for the warning.
        warn: Function that receives the warning, one line without credentials; it may fail too.
    """
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  (any failure)
        with suppress(Exception):
            warn(f"{what} failed: {describe(error)}; the run is not affected")


def describe(error: BaseException) -> str:
    """Describe an exception in one line, without credentials and control characters."""
    message, name = sanitize(join_lines(str(error)))[:_MAX_LENGTH], type(error).__name__
    if isinstance(error, NnbuildError):
        return message
    return f"{name}: {message}" if message else name


class Harmless:
    """Proxy of a progress display that stops forwarding calls after the first failure.

    A closed terminal would fail at every step of a fit; one warning is enough.

    Args:
        display: Display whose methods return nothing of interest.
        warn: As for `outward`.
    """

    def __init__(self, display: Any, warn: Callable[[str], object]) -> None:
        self._display, self._warn = display, warn
        self._failed = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            if not self._failed:
                with outward("the display", self._give_up):
                    getattr(self._display, name)(*arguments, **options)

        return call

    def _give_up(self, warning: str) -> None:
        self._failed = True
        self._warn(warning)
