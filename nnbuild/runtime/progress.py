"""Report the progress of a fit and of a scoring job to the caller."""

import time
from typing import Protocol


class ProgressCallback(Protocol):
    """Callback for the progress of a run or of a scoring job.

    The methods are called between the steps of the work, so each should return quickly. What they
    raise ends the run or the job. Subclasses of `NullProgress` define only those that they need.
    """

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Take note that some steps of an epoch are done.

        Args:
            epoch: Number of the epoch, from 1.
            epochs: Total number of epochs.
            done: Number of finished steps of this epoch.
            steps: Number of steps per epoch.
            metrics: Training metrics of the epoch so far.
        """

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        """Take note that an epoch is done.

        Args:
            epoch: Number of the epoch, from 1.
            epochs: Total number of epochs.
            metrics: Training and, if there are any, validation metrics of the epoch.
            seconds: Duration of the epoch.
        """

    def scored(self, done: int, total: int, rate: float) -> None:
        """Take note that some rows of a scoring job are done.

        Args:
            done: Number of scored and quarantined rows.
            total: Number of rows of the input.
            rate: Rows per second, without those that were done before the job was resumed.
        """


class NullProgress:
    """Progress callback that does nothing."""

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Ignore the steps."""

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        """Ignore the epoch."""

    def scored(self, done: int, total: int, rate: float) -> None:
        """Ignore the rows."""


class RowProgress:
    """Counts the rows of a scoring job, and reports them to a callback.

    Args:
        progress: Receives the number of rows; None to report nothing.
        done: Number of rows that were done before.
        total: Number of rows of the input.
    """

    def __init__(self, progress: ProgressCallback | None, done: int, total: int) -> None:
        self._progress = progress or NullProgress()
        self._before = self._done = done
        self._total = total
        self._began = time.perf_counter()

    def add(self, rows: int) -> None:
        """Report that some more rows are done."""
        if not rows:
            return
        self._done += rows
        seconds = max(time.perf_counter() - self._began, 1e-9)
        self._progress.scored(self._done, self._total, (self._done - self._before) / seconds)
