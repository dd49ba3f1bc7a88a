"""Score a range of dated inputs: those that this model has not scored yet, a few at a time."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import date, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import (
    AlreadyScoredError,
    BeingScoredError,
    ConfigError,
    DataError,
    Interrupted,
    NnbuildError,
)
from nnbuild.runtime.environment import processors
from nnbuild.runtime.signals import deferred_signals
from nnbuild.scoring import claims
from nnbuild.scoring.addresses import is_there
from nnbuild.scoring.commit import DriftReport
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job import require_outside, scored_before
from nnbuild.scoring.models import resolve_model
from nnbuild.scoring.scorer import score
from nnbuild.store import Store

_DATE = re.compile(r"\{date(?::([^{}]*))?\}")
MOST_DAYS = 3660


class Partition(NamedTuple):
    """The input of a day.

    Attributes:
        day: which.
        config: of its job: the day stands in the place of `{date}`.
    """

    day: date
    config: ScoreConfig


def is_dated(text: str) -> bool:
    """Whether a day can be put into it."""
    return bool(_DATE.search(text))


def partitions(config: ScoreConfig, first: date, last: date) -> list[Partition]:
    """The days of a range, each with its own input; and with its own output, if there is one.

    Args:
        config: whose `input` holds `{date}`, or `{date:…}` with a format of `strftime`.
        first: day.
        last: day, included.

    Raises:
        ConfigError: the range ends before it begins or is longer than ten years, `{date}` is
            missing, or two days with inputs of their own have the same output.
    """
    if last < first:
        raise ConfigError(f"from {first} to {last}: ends before it begins; exchange the two")
    days = (last - first).days + 1
    if days > MOST_DAYS:
        raise ConfigError(
            f"from {first} to {last}: {days} days, expected {MOST_DAYS} at most; go in parts"
        )
    for option, given in (("--input", config.input), ("--output", config.output)):
        if given is not None and not is_dated(given):
            raise ConfigError(
                f"{option} {given!r} is the same for every day; put {{date}} where the day stands"
            )
    found = [_of(config, first + timedelta(days=number)) for number in range(days)]
    _require_own_outputs(found)
    return found


def _require_own_outputs(days: list[Partition]) -> None:
    writers: dict[str, Partition] = {}
    for each in days:
        output = each.config.output
        if output is None:
            continue
        other = writers.setdefault(os.path.normpath(output), each)
        if other.config.input != each.config.input:
            raise ConfigError(
                f"--output {output!r} is the same for {other.day} and {each.day}; "
                "put the whole {date} into it"
            )


def _of(config: ScoreConfig, day: date) -> Partition:
    given = {"input": config.input, "output": config.output}
    dated = {
        name: _DATE.sub(lambda found: day.strftime(found[1] or "%Y-%m-%d"), text)
        for name, text in given.items()
        if text
    }
    return Partition(day, config.model_copy(update=dated))


MOST_AT_ONCE = 64
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_FIRST_TRY, _SECONDS_BETWEEN_TRIES = 0.5, 8.0  # each try opens the input again


class DayResult(BaseModel):
    """What became of a day.

    Attributes:
        day: which.
        input: its address.
        status: `scored` now, `skipped` since this model has scored it before, `missing`, `failed`,
            or `waiting` for another job that is scoring it, which is reported but never the end.
        score_id: of the job that scored it, now or before.
        rows: that were scored now.
        run_id: of the model that scored it now.
        drift: of what was scored now.
        remark: Why it failed, or what it waits for.
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
    at_once: int = 2,
    on_day_done: Callable[[DayResult], None] = lambda _: None,
) -> list[DayResult]:
    """Score what lies between two days and was not scored by this model yet. The same call again goes on with the rest.

    Whether it was is known from `score_runs`: the same model file, the same input in size and time, the same columns.
    A day that another job is scoring at this moment is waited for, and skipped when that job has
    committed it; if the job dies, the day is scored here.

    Args:
        config: with `{date}` in its input; the champion is looked up once, for all days.
        first: day.
        last: day, included.
        root: of the store.
        at_once: jobs that run beside each other; they share the processors.
        on_day_done: Called when a day is done, and when one begins to wait.

    Returns:
        One for each day, in order.

    Raises:
        InputError: the range, the model or an option cannot be used, or there is no input at all.
        LockedError: A job of another input or store is writing to the output of one of the days.
        Interrupted: a signal asked to stop.
    """
    if not 1 <= at_once <= MOST_AT_ONCE:
        raise ConfigError(f"{at_once} at once, expected 1 to {MOST_AT_ONCE}")
    store = Store(root)
    days = partitions(config, first, last)
    there = [each for each in days if is_there(each.config.input)]
    if not there:
        raise DataError(
            f"nothing to score from {first} to {last}: there is no {days[0].config.input}, nor any other"
        )
    _require_outputs(store, there)
    if (output := days[0].config.output) is not None:  # now, and not as a failure of each day
        require_outside(store, output)
    model = resolve_model(store, config).run_id
    shared = {"threads": config.threads or max(1, processors() // at_once)}
    found = {
        each.day: DayResult(day=each.day, input=each.config.input, status="missing")
        for each in days
    }
    work = _Work(store, shared | ({"model": model} if model else {}))
    for part in _made(work, there, at_once):
        on_day_done(part)
        if part.status != "waiting":
            found[part.day] = part
    return list(found.values())


def _made(work: "_Work", there: list[Partition], at_once: int) -> Any:
    with deferred_signals() as stop, ThreadPoolExecutor(at_once, "nnbuild-backfill") as pool:
        waiting: set[Future[DayResult]] = {pool.submit(work.part, each) for each in there}
        try:
            while waiting:
                done, waiting = wait(waiting, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
                yield from work.notices()
                yield from (each.result() for each in done)
                if number_of_signal := stop():
                    raise Interrupted(
                        f"stopped by signal {number_of_signal} with {len(waiting)} days to go; "
                        "the same command goes on with them",
                        number_of_signal,
                    )
        finally:
            work.stopped.set()
            pool.shutdown(cancel_futures=True)


def _require_outputs(store: Store, days: list[Partition]) -> None:
    """Refuse the whole range if one of its outputs is in use by a job that scores something else."""
    for each in days:
        output = each.config.output
        holder = claims.output_holder(output) if output else None
        if holder is None or output is None:
            continue
        record = holder.record
        if (record.get("store"), record.get("input")) != (str(store.root), each.config.input):
            raise claims.in_use(output, holder)


class _Work:
    """What the threads share; each job in them stops when it is told to."""

    def __init__(self, store: Store, fixed: dict[str, Any]) -> None:
        self._store, self._fixed = store, fixed
        self._notices: SimpleQueue[DayResult] = SimpleQueue()
        self.stopped = threading.Event()

    def notices(self) -> Iterator[DayResult]:
        """Yield the days that have begun to wait since the last call."""
        while not self._notices.empty():
            yield self._notices.get()

    def part(self, given: Partition) -> DayResult:
        about = {"day": given.day, "input": given.config.input}
        config = given.config.model_copy(update=self._fixed)
        try:
            return self._scored(config, about)
        except Interrupted:
            raise
        except NnbuildError as error:
            return DayResult(
                **about,
                status="failed",
                remark=" ".join([str(error), *getattr(error, "__notes__", ())]),
            )

    def _scored(self, config: ScoreConfig, about: dict[str, Any]) -> DayResult:
        pause = _SECONDS_TO_FIRST_TRY
        while True:
            try:
                if (before := scored_before(self._store, config)) is not None:
                    return DayResult(**about, status="skipped", score_id=before)
                done = score(config, str(self._store.root), watch=self, once=True)
            except AlreadyScoredError as error:
                return DayResult(**about, status="skipped", score_id=error.score_id)
            except BeingScoredError as error:
                if pause == _SECONDS_TO_FIRST_TRY:
                    self._notices.put(DayResult(**about, status="waiting", remark=str(error)))
                if self.stopped.wait(pause):
                    raise Interrupted(f"stopped while {error}", 2) from error
                pause = min(2 * pause, _SECONDS_BETWEEN_TRIES)
            else:
                return DayResult(
                    **about,
                    status="scored",
                    score_id=done.score_id,
                    rows=done.rows,
                    run_id=done.run_id,
                    drift=done.drift,
                )

    def scored(self, done: int, total: int, seconds: float) -> None:  # noqa: ARG002
        """Rows are scored: the moment to stop, if that was asked for."""
        if self.stopped.is_set():
            raise Interrupted(f"stopped after {done} of {total} rows", 2)
