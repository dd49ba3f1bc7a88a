"""How far the work is, told beside it: a thread speaks to the server, and the work waits for no answer."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Protocol, cast

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from nnbuild.runtime.outward import Harmless
from nnbuild.runtime.progress import ProgressCallback
from tasks.artifacts import logger, outward, warn, within_a_run

SECONDS_TO_CONCLUDE = 10.0
"""How long the work waits at its end for a server that accepts requests and does not answer."""


class Aside:
    """Says one thing at a time. A server that is slow or away costs the work nothing: the next telling has the news."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._gave_up = False

    def say(self, telling: Callable[[], object]) -> None:
        """Say something from a thread, unless what was said before is not heard yet; nothing where no flow runs."""
        if within_a_run() and not self._is_busy():
            self._start(telling)

    def conclude(self, telling: Callable[[], object]) -> None:
        """Report for the last time, after what was reported before, and wait for the server.

        The wait ends after `SECONDS_TO_CONCLUDE`, which is logged; later reports are left out.
        """
        if not within_a_run() or self._gave_up:
            return
        end = time.monotonic() + SECONDS_TO_CONCLUDE
        self._wait_until(end)
        if not self._is_busy():
            self._start(telling)
            self._wait_until(end)
        if self._is_busy():
            self._gave_up = True
            warn(
                f"the server did not take the progress report within {SECONDS_TO_CONCLUDE:g} s; "
                "the run is not affected"
            )

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self, telling: Callable[[], object]) -> None:
        arguments = (_without_harm, telling)
        self._thread = threading.Thread(
            target=copy_context().run, args=arguments, name="telling", daemon=True
        )
        self._thread.start()

    def _wait_until(self, end: float) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, end - time.monotonic()))


def _without_harm(telling: Callable[[], object]) -> None:
    with outward("the progress report"):
        telling()


class ProgressBar:
    """A progress artifact.

    Args:
        key: the same for every run.
        description: what it counts.
    """

    def __init__(self, key: str, description: str) -> None:
        self._key, self._description = key, description
        self._artifact: Any = None

    def show(self, percent: float) -> None:
        """Draw it, or move it."""
        if self._artifact is None:
            self._artifact = create_progress_artifact(
                percent, key=self._key, description=self._description
            )
        else:
            update_progress_artifact(self._artifact, percent)


class Display(ProgressCallback, Protocol):
    """Shows a run to a person."""

    def begin(self, step: str) -> None:
        """A step of the recipe begins."""

    def note(self, text: str) -> None:
        """Something to know about the run."""

    def download(self, file: str, done: int, total: int | None) -> None:
        """Bytes of a download are there."""

    def committed(self, run_id: str) -> None:
        """Take note that a run is committed, whatever becomes of its flow run."""


_displays: ContextVar[tuple[Display, ...]] = ContextVar("displays", default=())


@contextmanager
def shown_on(*displays: Display) -> Iterator[None]:
    """Let displays watch the runs in this block. One that fails is not shown anything more."""
    harmless = [Harmless(each, lambda text: logger().warning("%s", text)) for each in displays]
    token = _displays.set(cast("tuple[Display, ...]", tuple(harmless)))
    try:
        yield
    finally:
        _displays.reset(token)


def displays() -> tuple[Display, ...]:
    """The displays that watch now."""
    return _displays.get()
