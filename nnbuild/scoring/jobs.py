"""A scoring job from its opening to its last shard; a job that was stopped goes on with the first that is missing."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pydantic import ValidationError

from nnbuild import faults, machine
from nnbuild.errors import ConfigError, InputError, Interrupted, StoreError
from nnbuild.scoring.columns import score_schema
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.inputs import Input, open_input
from nnbuild.scoring.models import ScoringModel, engine_of, resolve_model
from nnbuild.scoring.rows import Columns
from nnbuild.scoring.shards import Shard, Work, finished, make_shards, plan
from nnbuild.scoring.where import parse
from nnbuild.signals import caught
from nnbuild.store import Store, locks
from nnbuild.store.files import as_store_error, make_folder, read_json, write_json
from nnbuild.store.names import new_run_id, require_score_id


class Watch(Protocol):
    """Who is told how the job goes. Each call should be quick."""

    def scored(self, done: int, total: int, seconds: float) -> None:
        """So many of the input's rows are done, in so many seconds of this process."""


class _Nobody:
    def scored(self, done: int, total: int, seconds: float) -> None: ...


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
    """

    store: Store
    score_id: str
    config: ScoreConfig
    started_at: datetime
    model: ScoringModel
    source: Input

    @property
    def folder(self) -> Path:
        """Where its files are until it is committed."""
        return staging(self.store, self.score_id)

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
    return store.workshop / "staging" / f"score-{require_score_id(score_id)}"


def open_job(config: ScoreConfig, root: Path | str | None = None, *, now: datetime | None = None) -> Job:
    """Begin a job; what can be refused is refused before anything is written.

    Args:
        config: what is scored, by which model, and how.
        root: of the store.
        now: aware time of the start; the clock's if not given.

    Raises:
        InputError: the model, the input or an option cannot be used; the store is as it was.
    """
    store, started = Store(root), now or datetime.now(UTC)
    model, source = _opened(store, config)
    if config.output is not None:
        _require_new(Path(config.output))
    if model.run_id is not None:
        config = config.model_copy(update={"model": model.run_id})
    job = Job(store, new_run_id(started, max(store.scored(), default=None)), config, started, model, source)
    write_json(job.folder / "job.json", _record(job))
    return job


def resume_job(score_id: str, root: Path | str | None = None) -> Job:
    """Take up a job that was stopped.

    Raises:
        StoreError: it does not wait, or its model or its input have changed.
    """
    store = Store(root)
    path = staging(store, score_id) / "job.json"
    if score_id in store.scored():
        raise StoreError(f"scoring job {score_id} is committed, there is nothing to resume")
    if not path.exists():
        raise StoreError(f"no scoring job {score_id} waits in {store.root}; begin a new one")
    held = read_json(path)
    try:
        config = ScoreConfig.model_validate(held["config"])
        started = datetime.fromisoformat(held["started_at"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is no record of a job ({type(error).__name__}); begin a new one") from error
    model, source = _opened(store, config)
    job = Job(store, score_id, config, started, model, source)
    record = _record(job)
    changed = [name for name in ("input", "model_digest", "code_version") if record[name] != held.get(name)]
    if changed:
        raise StoreError(f"scoring job {score_id}: its {' and '.join(changed)} changed since; begin a new one")
    return job


def _opened(store: Store, config: ScoreConfig) -> tuple[ScoringModel, Input]:
    model = resolve_model(store, config)
    if config.calibrated and model.temperature is None:
        raise ConfigError(f"--calibrated: model {config.model} has no temperature; score a run that was calibrated")
    source = open_input(config.input, Columns(config.id_column, config.keep), model.image_shape)
    schema = score_schema(config, model.classes, source.schema())
    if config.where is not None:
        try:
            schema.empty_table().filter(parse(config.where, schema.names))
        except (pa.ArrowException, TypeError) as error:
            raise ConfigError(f"--where {config.where!r} compares values of different types: {error}") from error
    return model, source


def _record(job: Job) -> dict[str, Any]:
    return {
        "score_id": job.score_id,
        "started_at": job.started_at.astimezone(UTC).isoformat(),
        "config": job.config.model_dump(mode="json"),
        "model_digest": job.model.digest,
        "input": job.source.identity(),
        "code_version": machine.code_version(),
    }


def _require_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output {folder}: holds something already; give a new folder")


@contextmanager
def working_on(job: Job) -> Iterator[None]:
    """Hold a job while it runs. Bad input leaves the store as it was; anything else leaves the job to be resumed."""
    with locks.held(job.folder):
        try:
            yield
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


def _how_to_resume(job: Job) -> str:
    return f"resume it by: nnbuild score --resume {job.score_id} --store {job.store.root}"


def score_input(job: Job, watch: Watch | None = None) -> list[Shard]:
    """Make every shard that is not there yet.

    Raises:
        DataError: a row cannot be scored, and the job is to stop there.
        ContractError: what comes out of the model is no logits, or not finite.
        Interrupted: a signal asked to stop; whole shards are kept.
    """
    watch = watch or _Nobody()
    schema = score_schema(job.config, job.model.classes, job.source.schema())
    where = parse(job.config.where, schema.names) if job.config.where else None
    todo, done = [], []
    for number, units in enumerate(plan(job.source.units(), job.config.shard_rows)):
        shard = finished(job.folder, number)
        done += [shard] if shard else []
        todo += [] if shard else [(number, units)]
    work = Work(
        job.config,
        job.source,
        lambda: engine_of(job.model, job.config, job.folder),
        job.model.classes,
        schema,
        job.temperature,
        where,
    )
    rows, total, began = sum(each.rows + each.quarantined for each in done), job.total, time.perf_counter()
    make_folder(job.folder / "rows")
    with caught() as stop:
        for made in make_shards(work, todo, job.folder):
            if isinstance(made, Shard):
                done.append(made)
            else:
                rows += made
                watch.scored(rows, total, time.perf_counter() - began)
            if number_of_signal := stop():
                raise Interrupted(f"stopped by signal {number_of_signal} after {rows} rows", number_of_signal)
    faults.point("score:shards")
    return sorted(done, key=lambda each: each.name)
