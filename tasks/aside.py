"""How far the work is, told beside it: a thread speaks to the server, and the work waits for no answer."""

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.prefect_side import outward, within_a_run


class Aside:
    """Says one thing at a time. A server that is slow or away costs the work nothing: the next telling has the news."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def say(self, telling: Callable[[], object]) -> None:
        """Say something from a thread, unless what was said before is not heard yet; nothing where no flow runs."""
        if not within_a_run() or (self._thread is not None and self._thread.is_alive()):
            return
        arguments = (_without_harm, telling)
        self._thread = threading.Thread(
            target=copy_context().run, args=arguments, name="telling", daemon=True
        )
        self._thread.start()

    def conclude(self, telling: Callable[[], object]) -> None:
        """Say the last thing, in its place behind the others."""
        if self._thread is not None:
            self._thread.join()
        if within_a_run():
            _without_harm(telling)


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
