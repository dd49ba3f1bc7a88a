"""Report a run to people: its log, and the displays that are attached to it.

Importing this module makes every log record of the process safe to show.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, cast

from prefect import get_run_logger
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError

from nnbuild.runtime import outward as reports
from nnbuild.runtime.text import sanitize_log_records

if TYPE_CHECKING:
    from nnbuild.sweep import SweepResult

sanitize_log_records()


class Display(Protocol):
    """Shows a run to a person, in a terminal or in a log file."""

    def note(self, text: str) -> None:
        """Show a remark about the run."""

    def download(self, file: str, done: int, total: int | None) -> None:
        """Show the progress of a download.

        Args:
            file: Name of the file.
            done: Number of bytes received.
            total: Size of the file in bytes, if known.
        """

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Show the finished steps of an epoch; see `nnbuild.runtime.progress.ProgressCallback`."""

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        """Show a finished epoch; see `nnbuild.runtime.progress.ProgressCallback`."""

    def committed(self, run_id: str) -> None:
        """Remember the ID of the committed run, even if its flow run fails afterwards."""

    def sweep_finished(self, result: "SweepResult") -> None:
        """Remember the result of a sweep, even if its flow run fails afterwards."""


_displays: ContextVar[tuple[Display, ...]] = ContextVar("displays", default=())


@contextmanager
def attach_displays(*displays: Display) -> Iterator[None]:
    """Show the runs of this block on displays. A display that fails is detached."""
    guarded = [
        reports.Harmless(each, lambda text: logger().warning("%s", text)) for each in displays
    ]
    token = _displays.set(cast("tuple[Display, ...]", tuple(guarded)))
    try:
        yield
    finally:
        _displays.reset(token)


def active_displays() -> tuple[Display, ...]:
    """Return the displays that are attached to the current run."""
    return _displays.get()


def show_note(text: str) -> None:
    """Show a remark on every attached display."""
    for display in active_displays():
        display.note(text)


def in_prefect_run() -> bool:
    """Return whether Prefect runs this code.

    A task that is called as a plain function sends nothing to a server.
    """
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """Return Prefect's logger of the run, or the `nnbuild` logger outside of Prefect."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("nnbuild")


def warn(message: str) -> None:
    """Log a warning, and show it on the attached displays."""
    logger().warning("%s", message)
    show_note(message)


def outward(report: str) -> AbstractContextManager[None]:
    """Turn any exception of a report into a warning, so that it cannot change how the run ends.

    Everything that a task or a hook sends to Prefect, a webhook or a display belongs in such a
    block, together with what is computed for that report alone.

    Args:
        report: Name of the report, for the warning.
    """
    return reports.outward(report, warn)
