"""Report the progress of a task: to displays at once, to the Prefect server from the background."""

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.artifacts import rounded, show_table
from tasks.displays import active_displays, in_prefect_run, logger, outward, show_note, warn
from tasks.silent_server import waiting_once

SECONDS_TO_FLUSH = 10.0
"""Longest wait, at the end of a task, for a server that accepts requests but does not answer."""
SECONDS_BETWEEN_UPDATES = 2.0
SECONDS_BETWEEN_LINES = 10.0


class BackgroundReporter:
    """Runs one report at a time in a thread, so that the work never waits for the server.

    A report that is submitted while another one runs is dropped: the next one has newer values.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._gave_up = False

    def submit(self, report: Callable[[], object]) -> None:
        """Start a report, unless another one runs. Does nothing outside of a Prefect run."""
        if in_prefect_run() and not self._is_busy():
            self._start(report)

    def flush(self, report: Callable[[], object]) -> None:
        """Send the last report, after the one in progress, and wait for the server.

        If that takes longer than `SECONDS_TO_FLUSH`, this logs a warning, and later reports are
        dropped.
        """
        if not in_prefect_run() or self._gave_up:
            return
        end = time.monotonic() + SECONDS_TO_FLUSH
        self._wait_until(end)
        if not self._is_busy():
            self._start(report)
            self._wait_until(end)
        if self._is_busy():
            self._gave_up = True
            warn(
                f"the server did not take the progress report within {SECONDS_TO_FLUSH:g} s; "
                "the run is not affected"
            )

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self, report: Callable[[], object]) -> None:
        self._thread = threading.Thread(
            target=copy_context().run,
            args=(_report_safely, report),
            name="nnbuild-progress",
            daemon=True,
        )
        self._thread.start()

    def _wait_until(self, end: float) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, end - time.monotonic()))


def _report_safely(report: Callable[[], object]) -> None:
    with outward("the progress report"):
        report()


class ProgressBar:
    """A progress artifact, created by its first update.

    Args:
        key: Result of `artifact_key`.
        description: What the bar counts.
    """

    def __init__(self, key: str, description: str) -> None:
        self._key, self._description = key, description
        self._artifact: Any = None

    def show(self, percent: float) -> None:
        """Create the artifact, or update it."""
        with waiting_once():
            if self._artifact is None:
                self._artifact = create_progress_artifact(
                    percent, key=self._key, description=self._description
                )
            else:
                update_progress_artifact(self._artifact, percent)


class Throttle:
    """Limits how often something happens; the first time is one interval after the start.

    Args:
        seconds: Shortest time between two permissions.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Return whether the interval is over; if so, start the next one."""
        now = time.monotonic()
        if now - self._last <= self._seconds:
            return False
        self._last = now
        return True


class ProgressReporter:
    """Progress callback of the tasks: displays at once, log and server at a limited rate.

    Args:
        bar: Progress artifact of the task. Without one, only displays are updated.
        heading: Remark that displays show before the first step.
        epochs_key: Key of the artifact with the metrics of each epoch; none is shown if empty.
    """

    def __init__(
        self, bar: ProgressBar | None = None, heading: str = "", epochs_key: str = ""
    ) -> None:
        self._bar, self._heading, self._epochs_key = bar, heading, epochs_key
        self._background = BackgroundReporter()
        self._bar_throttle = Throttle(SECONDS_BETWEEN_UPDATES)
        self._text_throttle = Throttle(SECONDS_BETWEEN_LINES)
        self._epochs: list[dict[str, float]] = []

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Report the finished steps of an epoch; see `nnbuild.runtime.progress`."""
        if self._heading:
            show_note(self._heading)
            self._heading = ""
        for display in active_displays():
            display.step(epoch, epochs, done, steps, metrics)
        self._update_bar((epoch - 1 + done / steps) / epochs)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        """Report a finished epoch; see `nnbuild.runtime.progress`."""
        if self._bar is not None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            logger().info("epoch %d/%d  %s  %.1f s", epoch, epochs, text, seconds)
        for display in active_displays():
            display.epoch(epoch, epochs, metrics, seconds)
        values = {name: rounded(value) for name, value in (metrics | {"seconds": seconds}).items()}
        self._epochs.append({"epoch": epoch, **values})
        if self._epochs_key and self._text_throttle.is_due():
            self._background.submit(partial(self._show_epochs, list(self._epochs)))

    def scored(self, done: int, total: int, rate: float) -> None:
        """Report the scored rows of a job; see `nnbuild.runtime.progress`."""
        if done == total or self._text_throttle.is_due():
            left = (total - done) / rate
            logger().info("%d of %d rows, %.0f rows/s, %.0f s left", done, total, rate, left)
        if done == total:
            self.finish()
        else:
            self._update_bar(done / total)

    def finish(self) -> None:
        """Send the complete table of epochs and a full bar, and wait for the server."""
        if self._bar is None:
            return
        if self._epochs and self._epochs_key:
            self._background.flush(partial(self._show_epochs, self._epochs))
        self._background.flush(partial(self._bar.show, 100.0))

    def _update_bar(self, fraction: float) -> None:
        if self._bar is not None and self._bar_throttle.is_due():
            self._background.submit(partial(self._bar.show, 100 * fraction))

    def _show_epochs(self, rows: list[dict[str, float]]) -> None:
        show_table(self._epochs_key, rows, "Loss and metrics of each epoch")
