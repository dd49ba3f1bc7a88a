"""Backfill: score a range of dated inputs, a few at a time, except those already scored.

`partitions` turns a pattern such as `day={date}` into an input for each day, `backfill` scores
these inputs in threads.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import date, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from nnbuild.data.formats import is_there
from nnbuild.errors import (
    AlreadyScoredError,
    BeingScoredError,
    ConfigError,
    DataError,
    Interrupted,
    NnbuildError,
)
from nnbuild.runtime.date_patterns import address_of_day, is_dated
from nnbuild.runtime.environment import processors
from nnbuild.runtime.progress import NullProgress
from nnbuild.runtime.signals import deferred_signals
from nnbuild.scoring import claims, outputs
from nnbuild.scoring.commit import DriftReport
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job import scored_before
from nnbuild.scoring.models import resolve_model
from nnbuild.scoring.scorer import score
from nnbuild.scoring.shadow import resolve_shadow
from nnbuild.store import Store

MAX_DAYS = 3660
MAX_PARALLEL = 64
_POLL_SECONDS = 0.2
_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.5, 8.0  # each retry opens the input again


class Partition(NamedTuple):
    """The input of one day.

    Attributes:
        day: The day.
        config: Settings of its job, with the day in place of `{date}`.
    """

    day: date
    config: ScoreConfig


def partitions(config: ScoreConfig, first: date, last: date) -> list[Partition]:
    """Return the days of a range, each with its own input, and its own output if there is one.

    Args:
        config: Settings with `{date}` in `input`, or `{date:FORMAT}` with a format of `strftime`.
        first: First day.
        last: Last day, included.

    Raises:
        ConfigError: The range ends before it begins or is longer than ten years, `{date}` is
            missing, or two days with different inputs have the same output.
    """
    if last < first:
        raise ConfigError(
            f"the range from {first} to {last} ends before it begins; swap the two dates"
        )
    days = (last - first).days + 1
    if days > MAX_DAYS:
        raise ConfigError(
            f"the range from {first} to {last} has {days} days, expected at most {MAX_DAYS}; "
            "split it"
        )
    for name, address in (("input", config.input), ("output", config.output)):
        if address is not None and not is_dated(address):
            raise ConfigError(
                f"{name} {address!r} is the same for every day; put {{date}} in place of the day",
                setting=name,
                value=address,
            )
    dated = [_partition(config, first + timedelta(days=number)) for number in range(days)]
    _require_own_outputs(dated)
    return dated


def _require_own_outputs(days: list[Partition]) -> None:
    writers: dict[str, Partition] = {}
    for each in days:
        output = each.config.output
        if output is None:
            continue
        other = writers.setdefault(os.path.normpath(output), each)
        if other.config.input != each.config.input:
            raise ConfigError(
                f"output {output!r} is the same for {other.day} and {each.day}; "
                "put the complete {date} into it"
            )


def _partition(config: ScoreConfig, day: date) -> Partition:
    addresses = {"input": config.input, "output": config.output}
    dated = {name: address_of_day(address, day) for name, address in addresses.items() if address}
    return Partition(day, config.model_copy(update=dated | {"day": day}))


class DayResult(BaseModel):
    """Outcome of one day of a backfill.

    Attributes:
        day: The day.
        input: Address of its input.
        status: `scored` by this call, `skipped` because this model had already scored it,
            `missing` without an input, or `failed`; and, in reports only, `waiting` for another
            job that is scoring it.
        score_id: ID of the job that scored it, in this call or before.
        rows: Number of rows scored by this call.
        run_id: ID of the run whose model scored it in this call.
        drift: Drift of the rows scored by this call.
        remark: Reason of the failure, or of the wait.
    """

    model_config = ConfigDict(frozen=True)
    day: date
    input: str
    status: Literal["scored", "skipped", "missing", "failed", "waiting"]
    score_id: str | None = None
    rows: int = 0
    run_id: str | None = None
    drift: DriftReport = DriftReport()
    remark: str = ""


def backfill(
    config: ScoreConfig,
    first: date,
    last: date,
    root: Path | str | None = None,
    *,
    max_parallel: int = 2,
    on_day_done: Callable[[DayResult], None] = lambda _: None,
) -> list[DayResult]:
    """Score the days of a range that this model has not scored yet; repeat the call to resume.

    A day counts as scored if the table `score_jobs` has a job with the same model file, the same
    input (by size and time of change) and the same columns. If another job is scoring a day, the
    call waits for that job and skips the day once it is committed; if that job dies, this call
    scores the day.

    Args:
        config: Settings with `{date}` in the input; the champion is looked up once for all days.
        first: First day.
        last: Last day, included.
        root: Root of the store.
        max_parallel: Number of jobs to run in parallel; they share the processors.
        on_day_done: Callback for the result of each day, and for each day that starts to wait.

    Returns:
        The result of each day, in order.

    Raises:
        InputError: The range, the model or a setting is invalid, or no day has an input.
        LockedError: A job with another input or store is writing to the output of a day.
        Interrupted: A signal asked to stop.
    """
    if not 1 <= max_parallel <= MAX_PARALLEL:
        raise ConfigError(
            f"max_parallel is {max_parallel}, expected 1 to {MAX_PARALLEL}",
            setting="max_parallel",
            value=max_parallel,
        )
    store = Store(root)
    days = partitions(config, first, last)
    present = [each for each in days if is_there(each.config.input)]
    if not present:
        raise DataError(
            f"nothing to score from {first} to {last}: no day has an input; the first would be "
            f"{days[0].config.input}"
        )
    _require_free_outputs(store, present)
    if (output := days[0].config.output) is not None:  # at once, not for each day
        outputs.require_outside(store, output)
    chosen = resolve_model(store, config)
    resolve_shadow(store, config, chosen)  # refused at once, not for each day
    model = chosen.run_id
    shared = {"threads": config.threads or max(1, processors() // max_parallel)}
    results = {
        each.day: DayResult(day=each.day, input=each.config.input, status="missing")
        for each in days
    }
    scorer = _DayScorer(store, shared | ({"model": model} if model else {}))
    for result in _score_days(scorer, present, max_parallel):
        on_day_done(result)
        if result.status != "waiting":
            results[result.day] = result
    return list(results.values())


def _score_days(
    scorer: "_DayScorer", days: list[Partition], max_parallel: int
) -> Iterator[DayResult]:
    with deferred_signals() as stop, ThreadPoolExecutor(max_parallel, "nnbuild-backfill") as pool:
        pending: set[Future[DayResult]] = {pool.submit(scorer.score_day, each) for each in days}
        try:
            while pending:
                done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                yield from scorer.notices()
                yield from (each.result() for each in done)
                if signal_number := stop():
                    raise Interrupted(
                        f"stopped by signal {signal_number} with {len(pending)} days to go; "
                        "repeat the command to resume",
                        signal_number,
                    )
        finally:
            scorer.stopped.set()
            pool.shutdown(cancel_futures=True)


def _require_free_outputs(store: Store, days: list[Partition]) -> None:
    """Refuse the range if a job that scores something else is writing to one of its outputs."""
    for each in days:
        output = each.config.output
        holder = claims.output_holder(output) if output else None
        if holder is None or output is None:
            continue
        record = holder.record
        if (record.get("store"), record.get("input")) != (str(store.root), each.config.input):
            raise claims.in_use(output, holder)


class _DayScorer(NullProgress):
    """Scores days in several threads; setting `stopped` ends their jobs.

    Args:
        store: Store with the model.
        shared: Settings that all days have in common.
    """

    def __init__(self, store: Store, shared: dict[str, Any]) -> None:
        self._store, self._shared = store, shared
        self._notices: SimpleQueue[DayResult] = SimpleQueue()
        self.stopped = threading.Event()

    def notices(self) -> Iterator[DayResult]:
        """Yield the days that started to wait since the last call."""
        while not self._notices.empty():
            yield self._notices.get()

    def score_day(self, partition: Partition) -> DayResult:
        """Score a day, and return a failure as a result instead of raising it."""
        about = {"day": partition.day, "input": partition.config.input}
        config = partition.config.model_copy(update=self._shared)
        try:
            return self._score(config, about)
        except Interrupted:
            raise
        except NnbuildError as error:
            return DayResult(
                **about,
                status="failed",
                remark=" ".join([str(error), *getattr(error, "__notes__", ())]),
            )

    def _score(self, config: ScoreConfig, about: dict[str, Any]) -> DayResult:
        pause = _FIRST_RETRY_SECONDS
        while True:
            try:
                if (before := scored_before(self._store, config)) is not None:
                    return DayResult(**about, status="skipped", score_id=before)
                done = score(config, str(self._store.root), progress=self, once=True)
            except AlreadyScoredError as error:
                return DayResult(**about, status="skipped", score_id=error.score_id)
            except BeingScoredError as error:
                if pause == _FIRST_RETRY_SECONDS:
                    self._notices.put(DayResult(**about, status="waiting", remark=str(error)))
                if self.stopped.wait(pause):
                    raise Interrupted(f"stopped while waiting: {error}", 2) from error
                pause = min(2 * pause, _MAX_RETRY_SECONDS)
            else:
                return DayResult(
                    **about,
                    status="scored",
                    score_id=done.score_id,
                    rows=done.rows,
                    run_id=done.run_id,
                    drift=done.drift,
                )

    def scored(self, done: int, total: int, _rate: float) -> None:
        """Stop the job between batches if `stopped` is set."""
        if self.stopped.is_set():
            raise Interrupted(f"stopped after {done} of {total} rows", 2)
