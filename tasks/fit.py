"""Fit: epochs, with the loss of each in the logs, in a progress bar and in a table that grows."""

import time
from functools import partial
from typing import Any

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import CompiledModel, FittedModel, LoadedData
from tasks.aside import Aside, ProgressBar
from tasks.load import told
from tasks.prefect_side import STEP, logger, rounded, run_name, show_table
from tasks.watching import displays

_SECONDS_BETWEEN_TABLES = 10.0
_SECONDS_BETWEEN_UPDATES = 2.0


class _Watch:
    """Passes on what the fit says: to the displays at once, to the server's database only so often."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._table_at = self._progress_at = time.monotonic()
        self._bar = ProgressBar("nnbuild-fit", "Epochs of the fit")
        self._aside = Aside()

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        for display in displays():
            display.step(epoch, epochs, done, steps, metrics)
        if time.monotonic() - self._progress_at > _SECONDS_BETWEEN_UPDATES:
            self._progress_at = time.monotonic()
            self._aside.say(partial(self._bar.show, 100 * (epoch - 1 + done / steps) / epochs))

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger().info("epoch %d/%d  %s  %.1f s", epoch, epochs, figures, seconds)
        for display in displays():
            display.epoch(epoch, epochs, metrics, seconds)
        figures_of = {
            name: rounded(value) for name, value in (metrics | {"seconds": seconds}).items()
        }
        self._rows.append({"epoch": epoch, **figures_of})
        if time.monotonic() - self._table_at > _SECONDS_BETWEEN_TABLES:
            self._table_at = time.monotonic()
            self._aside.say(partial(_show, list(self._rows)))

    def end(self) -> None:
        self._aside.conclude(partial(_show, self._rows))
        self._aside.conclude(partial(self._bar.show, 100.0))


def _show(rows: list[dict[str, Any]]) -> None:
    if rows:
        show_table("nnbuild-epochs", rows, "Loss and metrics of each epoch")


@task(name="fit", task_run_name=run_name("fit {run.config.model.name}"), retries=0, **STEP)
def fit(run: Run, data: LoadedData, compiled: CompiledModel) -> FittedModel:
    """Fit the network of a run; see `nnbuild.pipeline.fit_model`.

    Call it directly: through `.submit()` it would sit in a thread, where no signal, cancel or timeout reaches it.
    """
    for display in displays():
        display.note(told(run, data))
    watch = _Watch()
    fitted = pipeline.fit_model(run, data, compiled, watch=watch)
    watch.end()
    for remark in fitted.remarks:
        logger().warning(remark)
        for display in displays():
            display.note(remark)
    return fitted
