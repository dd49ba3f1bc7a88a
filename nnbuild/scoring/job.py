"""A scoring job from its opening to its last shard; a job that was stopped goes on with the first that is missing."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from nnbuild.errors import (
    BeingScoredError,
    ConfigError,
    InputError,
    Interrupted,
    LockedError,
    StoreError,
)
from nnbuild.runtime import environment, fault_injection
from nnbuild.runtime.signals import interrupted, sigterm_as_exception
from nnbuild.scoring import claims, repeats
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.filters import parse
from nnbuild.scoring.inputs import Input, open_input
from nnbuild.scoring.kept_columns import require_known_types
from nnbuild.scoring.models import ScoringModel, engine_of, resolve_model
from nnbuild.scoring.shards import Shard, Work, finished, make_shards, plan
from nnbuild.scoring.table import Columns, Unit, score_schema
from nnbuild.store import Store, locks
from nnbuild.store.filesystem import (
    as_store_error,
    is_url,
    make_durable_dir,
    open_root,
    os_errors_as_store_errors,
    read_json,
    write_json,
)
from nnbuild.store.ids import is_run_id, new_run_id, require_score_id
from nnbuild.store.json_models import Moment, problem, read_model
from nnbuild.store.outputs import require_new_folder


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
            stack.enter_context(locks.lock(job.folder))
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


def open_job(
    config: ScoreConfig,
    root: Path | str | None = None,
    *,
    now: datetime | None = None,
    once: bool = False,
) -> Job:
    """Begin a job, or resume one that was stopped: of the same input, model and options.

    What can be refused is refused before anything is written.

    Args:
        config: What is scored, by which model, and how.
        root: The store.
        now: Aware time of the start; the clock's if not given.
        once: Whether the job is to be refused if another job has scored the same.

    Raises:
        InputError: The model, the input or an option cannot be used; the store is as it was.
        LockedError: Another job is scoring the same, or writing to the same output.
    """
    store, started = Store(root), now or datetime.now(UTC)
    model, source = _opened(store, config)
    config = _resolved(config, model, source).model_copy(
        update={"model": model.run_id or config.model}
    )
    job = Job(
        store,
        new_run_id(started, max(store.score_ids(), default=None)),
        config,
        started,
        model,
        source,
        is_new=True,
        once=once,
    )
    if (score_id := _waiting(job)) is not None:
        return replace(resume_job(score_id, root), once=once)
    if config.output is not None:
        require_outside(store, config.output)
    claims.require_unclaimed(job)
    if config.output is None:
        require_known_types(store, source.schema())
    elif not is_url(config.output):
        require_new_folder(Path(config.output).absolute())
    store.create()
    # The evidence for the scale of floats is looked for once; whoever makes a shard recalls it.
    write_json(job.folder / "job.json", _record(job) | {"pixel_scales": source.scales()})
    return job


_SAME = ("config", "model_digest", "input", "code_version")


def _waiting(job: Job) -> str | None:
    """The newest job in staging that nobody works on and that would write just the same rows."""
    folder, wanted = job.folder.parent, _record(job)
    if not folder.is_dir():
        return None
    with os_errors_as_store_errors(f"list {folder}"):
        names = (
            path.name.removeprefix("score-")
            for path in folder.iterdir()
            if path.name.startswith("score-")
        )
        ids = sorted((name for name in names if is_run_id(name)), reverse=True)
    done = set(job.store.score_ids())
    for score_id in (each for each in ids if each not in done):
        waiting = staging(job.store, score_id)
        try:
            held = read_json(waiting / "job.json")
        except StoreError:
            continue
        same = isinstance(held, dict) and all(held.get(name) == wanted[name] for name in _SAME)
        if same and not locks.is_held(waiting):
            return score_id
    return None


class _JobRecord(BaseModel):
    """What `_record` makes."""

    started_at: Moment
    config: dict[str, Any]
    model_digest: str
    input: list[Any]
    code_version: str
    pixel_scales: list[float] | None = None


def scored_before(store: Store, config: ScoreConfig) -> str | None:
    """The newest committed job that has scored just this: the same model file, input and columns.

    Args:
        store: whose `score_runs` is asked.
        config: of what would be scored.

    Raises:
        InputError: the model or the input cannot be used.
    """
    if not repeats.candidates(store, config):
        return None
    model, source = _opened(store, config)
    resolved = _resolved(config, model, source)
    return repeats.scored_as(store, resolved, model.digest, source.identity())


def _resolved(config: ScoreConfig, model: ScoringModel, source: Input) -> ScoreConfig:
    """Return the settings with what only model and input tell: the engine, the carried columns."""
    keep = tuple(source.schema().names)  # of pictures `path`, whether or not it was asked for
    return config.model_copy(update={"engine": model.engine, "keep": keep})


def resume_job(score_id: str, root: Path | str | None = None) -> Job:
    """Take up a job that was stopped.

    Raises:
        StoreError: it does not wait, or its model or its input have changed.
    """
    store = Store.open(root)
    path = staging(store, score_id) / "job.json"
    if score_id in store.score_ids():
        raise StoreError(f"scoring job {score_id} is committed, there is nothing to resume")
    if not path.exists():
        raise StoreError(f"no scoring job {score_id} waits in {store.root}; begin a new one")
    held = read_model(path, _JobRecord, "a record of a job", remedy="begin a new one")
    try:
        config = ScoreConfig.model_validate(held.config)
    except ValidationError as error:
        wrong = problem(error, "config")
        raise StoreError(f"{path} is not a record of a job: {wrong}; begin a new one") from error
    started = datetime.fromisoformat(held.started_at)
    model, source = _opened(store, config, held.pixel_scales)
    source.scales()  # found now if they are not recorded: an unclear scale is not the fault of a row
    job = Job(store, score_id, config, started, model, source)
    record = _record(job)
    changed = [
        name
        for name in ("input", "model_digest", "code_version")
        if record[name] != getattr(held, name)
    ]
    if changed:
        raise StoreError(
            f"scoring job {score_id}: its {' and '.join(changed)} changed since; begin a new one"
        )
    return job


def _opened(
    store: Store, config: ScoreConfig, scales: list[float] | None = None
) -> tuple[ScoringModel, Input]:
    model = resolve_model(store, config)
    if config.calibrated and model.temperature is None:
        raise ConfigError(
            f"--calibrated: model {config.model} has no temperature; score a run that was calibrated"
        )
    columns = Columns(
        config.id_column,
        config.keep,
        config.on_error == "stop",
        config.image_column,
        config.label_column,
    )
    source = open_input(
        config.input,
        columns,
        model.image_shape,
        pixel_max=config.pixel_max,
        scales=scales,
        class_names=model.class_names,
        pictures_only=config.on_error == "stop",
    )
    schema = score_schema(config, model.classes, source.schema())
    if config.where is not None:
        try:
            schema.empty_table().filter(parse(config.where, schema.names))
        except (pa.ArrowException, TypeError) as error:
            raise ConfigError(
                f"--where {config.where!r} compares values of different types: {error}"
            ) from error
    return model, source


def _record(job: Job) -> dict[str, Any]:
    return {
        "score_id": job.score_id,
        "started_at": job.started_at.astimezone(UTC).isoformat(),
        "config": job.config.model_dump(mode="json"),
        "model_digest": job.model.digest,
        "input": job.identity,
        "code_version": environment.code_version(),
    }


def require_outside(store: Store, output: str) -> Path:
    """Return the folder that a job's rows go to, local or remote, unless it is in the store.

    Raises:
        StoreError: The folder is in the store, or holds it.
    """
    return store.ensure_outside(open_root(output) if is_url(output) else Path(output).absolute())
