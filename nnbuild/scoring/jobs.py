"""A scoring job from its opening to its last shard; a job that was stopped goes on with the first that is missing."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from nnbuild.errors import BeingScoredError, InputError, Interrupted, LockedError, StoreError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.signals import interrupted, sigterm_as_exception
from nnbuild.scoring import claims
from nnbuild.scoring.columns import score_schema
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.inputs import Input
from nnbuild.scoring.models import ScoringModel, engine_of
from nnbuild.scoring.rows import Unit
from nnbuild.scoring.shards import Shard, Work, finished, make_shards, plan
from nnbuild.scoring.where import parse
from nnbuild.store import Store, locks
from nnbuild.store.filesystem import as_store_error, make_durable_dir
from nnbuild.store.ids import require_score_id


class Watch(Protocol):
    """Who is told how the job goes. Each call should be quick."""

    def scored(self, done: int, total: int, seconds: float) -> None:
        """So many of the input's rows are done, in so many seconds of this process."""


class Nobody:
    """Who is told nothing."""

    def scored(self, done: int, total: int, seconds: float) -> None:
        """Nothing comes of it."""


@dataclass(frozen=True)
class Job:
    """A scoring job in progress.

    Attributes:
        store: where its rows go and its model comes from.
        score_id: its id.
        config: what it was told; the model is named by its run's id.
        started_at: aware time of its start.
        model: verified.
        source: its input.
        is_new: Whether it was begun now, and not resumed.
        once: Whether it is given up if another job has scored the same.
    """

    store: Store
    score_id: str
    config: ScoreConfig
    started_at: datetime
    model: ScoringModel
    source: Input
    is_new: bool = False
    once: bool = False

    @property
    def folder(self) -> Path:
        """Where its files are until it is committed."""
        return staging(self.store, self.score_id)

    @cached_property
    def identity(self) -> list[list[Any]]:
        """What the input was when the job was opened; see `Input.identity`."""
        return self.source.identity()

    @property
    def temperature(self) -> float:
        """What the logits are divided by."""
        return (self.model.temperature or 1.0) if self.config.calibrated else 1.0

    @property
    def total(self) -> int:
        """The rows of its input."""
        return sum(unit.rows for unit in self.source.units())


def staging(store: Store, score_id: str) -> Path:
    """The folder of a job in progress."""
    return store.local_root / "staging" / f"score-{require_score_id(score_id)}"


@contextmanager
def working_on(job: Job) -> Iterator[None]:
    """Hold a job, its input and its output while it runs.

    Bad input leaves the store as it was, and so does a new job whose input or output is in use.
    Anything else leaves the job to be resumed.
    """
    with _held(job), sigterm_as_exception():
        try:
            with claims.claimed(job):
                yield
        except KeyboardInterrupt as error:
            stopped = interrupted(error)
            if job.folder.is_dir():  # otherwise the job was committed just before
                stopped.add_note(_how_to_resume(job))
            raise stopped from error
        except LockedError as error:
            if job.is_new:
                shutil.rmtree(job.folder, ignore_errors=True)
            else:
                error.add_note(_how_to_resume(job))
            raise
        except (StoreError, Interrupted) as error:
            error.add_note(_how_to_resume(job))
            raise
        except OSError as error:
            told = as_store_error(f"work in {error.filename or job.folder}", error)
            told.add_note(_how_to_resume(job))
            raise told from error
        except InputError:
            shutil.rmtree(job.folder, ignore_errors=True)
            raise


@contextmanager
def _held(job: Job) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.held(job.folder))
        except LockedError as error:
            raise BeingScoredError(str(error)) from error
        yield


def _how_to_resume(job: Job) -> str:
    return f"resume it by: nnbuild score --resume {job.score_id} --store {job.store.root}"


def work_of(job: Job) -> Work:
    """What making the job's shards takes."""
    schema = score_schema(job.config, job.model.classes, job.source.schema())
    return Work(
        job.config,
        job.source,
        lambda: engine_of(job.model, job.config, job.folder),
        job.model.classes,
        schema,
        job.temperature,
        parse(job.config.where, schema.names) if job.config.where else None,
    )


def shards_of(job: Job) -> list[list[Unit]]:
    """The units of each shard, by its number."""
    return plan(job.source.units(), job.config.shard_rows)


def progress_of(job: Job) -> tuple[list[Shard], list[tuple[int, list[Unit]]]]:
    """The shards that are made, and number and units of those that are not."""
    made = {number: finished(job.folder, number) for number in range(len(shards_of(job)))}
    todo = [(number, units) for number, units in enumerate(shards_of(job)) if made[number] is None]
    return [shard for shard in made.values() if shard is not None], todo


def score_input(job: Job, watch: Watch | None = None) -> list[Shard]:
    """Make every shard that is not there yet.

    Raises:
        DataError: a row cannot be scored, and the job is to stop there.
        ContractError: what comes out of the model is no logits, or not finite.
    """
    watch, work = watch or Nobody(), work_of(job)
    done, todo = progress_of(job)
    rows, total, began = (
        sum(each.rows + each.quarantined for each in done),
        job.total,
        time.perf_counter(),
    )
    make_durable_dir(job.folder / "rows")
    for made in make_shards(work, todo, job.folder):
        if isinstance(made, Shard):
            done.append(made)
        else:
            rows += made
            watch.scored(rows, total, time.perf_counter() - began)
    fault_injection.failpoint("score:shards")
    return sorted(done, key=lambda each: each.name)
