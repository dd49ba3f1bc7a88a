"""Score a range of dated inputs: those that this model has not scored yet, a few at a time."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from nnbuild.errors import ConfigError, DataError, Interrupted, NnbuildError
from nnbuild.machine import processors
from nnbuild.scoring.addresses import is_there
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.drifting import Compared
from nnbuild.scoring.models import resolve_model
from nnbuild.scoring.opening import scored_before
from nnbuild.scoring.partitions import Partition, partitions
from nnbuild.scoring.whole import score
from nnbuild.signals import caught
from nnbuild.store import Store

MOST_AT_ONCE = 64
_SECONDS_BETWEEN_LOOKS = 0.2


class Part(BaseModel):
    """What became of a day.

    Attributes:
        day: which.
        input: its address.
        status: `scored` now, `skipped` since this model has scored it before, `missing`, or `failed`.
        score_id: of the job that scored it, now or before.
        rows: that were scored now.
        run_id: of the model that scored it now.
        drift: of what was scored now.
        remark: why it failed.
    """

    model_config = ConfigDict(frozen=True)
    day: date
    input: str
    status: Literal["scored", "skipped", "missing", "failed"]
    score_id: str | None = None
    rows: int = 0
    run_id: str | None = None
    drift: Compared = Compared()
    remark: str = ""


def backfill(
    config: ScoreConfig,
    first: date,
    last: date,
    root: Path | str | None = None,
    *,
    at_once: int = 2,
    told: Callable[[Part], None] = lambda _: None,
) -> list[Part]:
    """Score what lies between two days and was not scored by this model yet. The same call again goes on with the rest.

    Whether it was is known from `score_runs`: the same model file, the same input in size and time, the same columns.

    Args:
        config: with `{date}` in its input; the champion is looked up once, for all days.
        first: day.
        last: day, included.
        root: of the store.
        at_once: jobs that run beside each other; they share the processors.
        told: is called when a day is done.

    Returns:
        One for each day, in order.

    Raises:
        InputError: the range, the model or an option cannot be used, or there is no input at all.
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
    model = resolve_model(store, config).run_id
    shared = {"threads": config.threads or max(1, processors() // at_once)}
    found = {
        each.day: Part(day=each.day, input=each.config.input, status="missing") for each in days
    }
    work = _Work(store, shared | ({"model": model} if model else {}))
    for part in _made(work, there, at_once):
        found[part.day] = part
        told(part)
    return list(found.values())


def _made(work: "_Work", there: list[Partition], at_once: int) -> Any:
    with caught() as stop, ThreadPoolExecutor(at_once, "nnbuild-backfill") as pool:
        waiting: set[Future[Part]] = {pool.submit(work.part, each) for each in there}
        try:
            while waiting:
                done, waiting = wait(waiting, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
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


class _Work:
    """What the threads share; each job in them stops when it is told to."""

    def __init__(self, store: Store, fixed: dict[str, Any]) -> None:
        self._store, self._fixed = store, fixed
        self.stopped = threading.Event()

    def part(self, given: Partition) -> Part:
        about = {"day": given.day, "input": given.config.input}
        config = given.config.model_copy(update=self._fixed)
        try:
            before = scored_before(self._store, config)
            if before is not None:
                return Part(**about, status="skipped", score_id=before)
            done = score(config, str(self._store.root), watch=self)
        except Interrupted:
            raise
        except NnbuildError as error:
            return Part(
                **about,
                status="failed",
                remark=" ".join([str(error), *getattr(error, "__notes__", ())]),
            )
        return Part(
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
