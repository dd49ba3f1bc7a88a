"""The life of a scoring job before its commit: create it or resume it, lock it, make its shards."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from nnbuild.data.formats import open_stream
from nnbuild.data.pixels import Workspace, workspace_in
from nnbuild.data.streams import Columns, ImageStream, InputChunk, StreamOptions, identity_of
from nnbuild.engines import Engine
from nnbuild.errors import (
    AlreadyScoredError,
    BeingScoredError,
    ConfigError,
    InputError,
    Interrupted,
    LockedError,
    RunError,
    StoreError,
    one_line,
)
from nnbuild.runtime import environment, fault_injection
from nnbuild.runtime.progress import ProgressCallback, RowProgress
from nnbuild.runtime.signals import interrupted, request_to_stop, sigterm_as_exception
from nnbuild.scoring import claims, outputs
from nnbuild.scoring.batch import ShadowContext, ShardContext
from nnbuild.scoring.config import NEWEST, ScoreConfig
from nnbuild.scoring.models import ScoringModel, engine_of, resolve_model
from nnbuild.scoring.selection import parse_filter, require_known_types
from nnbuild.scoring.shadow import PairedEngine, resolve_shadow, shadow_schema
from nnbuild.scoring.shards import (
    Shard,
    finished,
    have_files_changed,
    make_shards,
    plan,
)
from nnbuild.scoring.table import score_schema
from nnbuild.store import Store, locks
from nnbuild.store.commands import resume_scoring
from nnbuild.store.filesystem import (
    as_store_error,
    is_url,
    make_durable_dir,
    write_json,
)
from nnbuild.store.ids import new_run_id, require_id
from nnbuild.store.json_models import Moment, problem, read_model
from nnbuild.store.outputs import require_new_folder


@dataclass(frozen=True)
class Job:
    """A scoring job in progress.

    Attributes:
        store: Store with the model, and with the rows once they are committed.
        score_id: ID of the job.
        config: Settings, with the run ID as the model.
        started_at: Time of the start, with a time zone.
        model: The verified model.
        source: The open input.
        is_new: Whether the job was created now, and not resumed.
        once: Whether to stop if another job has scored the same.
        shadow: The verified shadow; None without one.
    """

    store: Store
    score_id: str
    config: ScoreConfig
    started_at: datetime
    model: ScoringModel
    source: ImageStream
    is_new: bool = False
    once: bool = False
    shadow: ScoringModel | None = None

    @property
    def folder(self) -> Path:
        """Return the folder of its files until it is committed."""
        return staging(self.store, self.score_id)

    @cached_property
    def identity(self) -> list[list[Any]]:
        """Return the identity of the input when the job was opened, without the states of files."""
        return identity_of(self.source)

    @property
    def temperature(self) -> float:
        """Return the divisor of the logits."""
        return (self.model.temperature or 1.0) if self.config.calibrated else 1.0

    @property
    def total(self) -> int:
        """Return the number of input rows."""
        return sum(chunk.rows for chunk in self.source.chunks())

    def with_threads(self, threads: int | None) -> "Job":
        """Return the job with another number of threads, on which its bytes do not depend."""
        return replace(self, config=self.config.model_copy(update={"threads": threads}))

    def record(self) -> dict[str, Any]:
        """Return the content of `job.json`, by which the job is resumed."""
        return {
            "score_id": self.score_id,
            "started_at": self.started_at.astimezone(UTC).isoformat(),
            "config": self.config.model_dump(mode="json"),
            "model_digest": self.model.digest,
            "shadow_digest": self.shadow.digest if self.shadow else None,
            "input": self.identity,
            "code_version": environment.code_version(),
        }


def staging(store: Store, score_id: str) -> Path:
    """Return the folder of a job in progress."""
    return store.local_root / "staging" / f"score-{require_id(score_id, 'score_id')}"


@contextmanager
def job_context(job: Job) -> Iterator[None]:
    """Lock a job, its input and its output while the block runs.

    Invalid input, or an input or output in use, removes a new job from the store. After any other
    error, and if it was resumed, the job can be resumed.
    """
    with _locked(job), sigterm_as_exception():
        try:
            with claims.claimed(job):
                yield
        except KeyboardInterrupt as error:
            raise _to_interrupted(job, error) from error
        except MemoryError as error:
            short = RunError(
                f"not enough memory ({one_line(error) or 'no reason given'}); set batch_size or "
                "threads to a smaller number"
            )
            short.add_note(_how_to_resume(job))
            raise short from error
        except InputError as error:
            if _is_useless(job, error):
                shutil.rmtree(job.folder, ignore_errors=True)
            else:
                error.add_note(_how_to_resume(job))
            raise
        except (RunError, Interrupted) as error:
            error.add_note(_how_to_resume(job))
            raise
        except OSError as error:
            reported = as_store_error(f"work in {error.filename or job.folder}", error)
            reported.add_note(_how_to_resume(job))
            raise reported from error
        except Exception as error:
            if (request := request_to_stop(error)) is None:
                raise
            raise _to_interrupted(job, request) from error


def _is_useless(job: Job, error: InputError) -> bool:
    """Return whether a job that invalid input has ended has nothing that could be resumed."""
    if isinstance(error, StoreError) and not isinstance(error, LockedError):
        return False
    return job.is_new or isinstance(error, AlreadyScoredError)


def _to_interrupted(job: Job, error: KeyboardInterrupt) -> Interrupted:
    stopped = interrupted(error)
    if job.folder.is_dir():  # otherwise the job was committed just before
        stopped.add_note(_how_to_resume(job))
    return stopped


@contextmanager
def _locked(job: Job) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.lock(job.folder))
        except LockedError as error:
            raise BeingScoredError(str(error)) from error
        yield


def _how_to_resume(job: Job) -> str:
    return f"resume it with: {resume_scoring(job.score_id, str(job.store.root))}"


def shard_context(job: Job) -> ShardContext:
    """Return the context for making the shards of a job."""
    schema = _row_schema(job.config, job.model, job.source)
    return ShardContext(
        config=job.config,
        source=job.source,
        engine=lambda: job_engine(job, job.config),
        classes=job.model.classes,
        schema=schema,
        temperature=job.temperature,
        where=parse_filter(job.config.where, schema.names) if job.config.where else None,
        class_names=job.model.class_names,
        energy_edges=job.model.energy_edges,
        set_threshold=job.model.set_threshold,
        shadow=_shadow_context(job),
    )


def _shadow_context(job: Job) -> ShadowContext | None:
    if job.shadow is None:
        return None
    return ShadowContext(
        str(job.shadow.run_id),
        shadow_schema(job.config, job.shadow, job.source.identifier()),
        (job.shadow.temperature or 1.0) if job.config.calibrated else 1.0,
        job.shadow.set_threshold,
    )


def job_engine(job: Job, config: ScoreConfig) -> Engine:
    """Return the engine of a job: its model, and its shadow if there is one.

    Args:
        job: The job.
        config: Its settings, with the number of threads to use.
    """
    engine = engine_of(job.model, config, job.folder)
    if job.shadow is None:
        return engine
    shadow = engine_of(job.shadow, config, job.folder, file="shadow.keras")
    return PairedEngine(engine, shadow)


def _row_schema(config: ScoreConfig, model: ScoringModel, source: ImageStream) -> pa.Schema:
    return score_schema(
        config,
        model.classes,
        source.schema(),
        class_names=model.class_names,
        keyed=source.identifier() == "text",
    )


def shards_of(job: Job) -> list[list[InputChunk]]:
    """Return the input chunks of each shard, by its number."""
    return plan(job.source.chunks(), job.config.shard_rows)


def progress_of(
    job: Job, *, is_verified: bool = True
) -> tuple[list[Shard], list[tuple[int, list[InputChunk]]]]:
    """Return the finished shards, and the number and chunks of each pending shard.

    Args:
        job: The job.
        is_verified: Whether to read the files of the finished shards; see `finished`.
    """
    done: list[Shard] = []
    pending: list[tuple[int, list[InputChunk]]] = []
    for number, chunks in enumerate(shards_of(job)):
        shard = finished(job.folder, number, shadow=job.shadow is not None, is_verified=is_verified)
        if shard is not None:
            done.append(shard)
        else:
            pending.append((number, chunks))
    return done, pending


def rows_of(shards: Sequence[Shard]) -> int:
    """Return the number of input rows of shards."""
    return sum(each.rows + each.quarantined for each in shards)


def score_input(job: Job, progress: ProgressCallback | None = None) -> list[Shard]:
    """Make the missing shards in this process.

    Raises:
        DataError: A row cannot be scored, and `on_error` is `stop`.
        ContractError: The output of the model is not a finite array of logits.
    """
    context = shard_context(job)
    done, pending = progress_of(job)
    counter = RowProgress(progress, rows_of(done), job.total)
    make_durable_dir(job.folder / "rows")
    for result in make_shards(context, pending, job.folder):
        if isinstance(result, Shard):
            done.append(result)
        else:
            counter.add(result)
    fault_injection.failpoint("score:shards")
    return sorted(done, key=lambda each: each.name)


def open_job(
    config: ScoreConfig,
    root: Path | str | None = None,
    *,
    now: datetime | None = None,
    once: bool = False,
) -> Job:
    """Create a job, or resume a stopped one with the same input, model and settings.

    Everything is checked before the first file is written.

    Args:
        config: Settings of the job.
        root: Root of the store.
        now: Time of the start, with a time zone; the current time by default.
        once: Whether to stop if another job has scored the same.

    Raises:
        InputError: The model, the input or a setting is invalid; the store is unchanged.
        LockedError: Another job is scoring the same, or writing to the same output.
    """
    store, started = Store(root), now or datetime.now(UTC)
    model, source = _open_model_and_input(store, config)
    shadow, any_shadow = resolve_shadow(store, config, model), config.shadow == NEWEST
    config = _resolved(config, model, source).model_copy(
        update={
            "model": model.run_id or config.model,
            "shadow": shadow.run_id if shadow else None,
        }
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
        shadow=shadow,
    )
    while (score_id := claims.waiting_job(job, any_shadow=any_shadow)) is not None:
        try:
            return replace(resume_job(score_id, root).with_threads(config.threads), once=once)
        except StoreError:
            if staging(store, score_id).exists():
                raise
            # Another process has ended it in between.
    if config.output is not None:
        outputs.require_outside(store, config.output)
    claims.require_unclaimed(job)
    if config.output is None:
        require_known_types(store, source.schema())
    elif not is_url(config.output):
        require_new_folder(Path(config.output).absolute())
    store.create()
    # Inferring the scale of floats may read the whole input: do it once, for all who make shards.
    write_json(job.folder / "job.json", job.record() | {"pixel_scales": source.scales()})
    return job


class _JobRecord(BaseModel):
    """Schema of `Job.record` in `job.json`."""

    started_at: Moment
    config: dict[str, Any]
    model_digest: str
    shadow_digest: str | None = None  # a job of an earlier version has none
    input: list[Any]
    code_version: str
    pixel_scales: list[float] | None = None


def scored_before(store: Store, config: ScoreConfig) -> str | None:
    """Return the newest committed job with the same model file, input and columns.

    Args:
        store: Store to search.
        config: Settings of the job.

    Raises:
        InputError: The model or the input is invalid.
    """
    if not claims.candidates(store, config):
        return None
    model, source = _open_model_and_input(store, config)
    resolved = _resolved(config, model, source)
    return claims.scored_as(store, resolved, model.digest, source)


def _workspace(store: Store) -> Workspace:
    """Return where an array is held; its file has no name, so nothing of it stays anywhere."""
    if store.exists():
        return workspace_in(store)
    return Workspace(Path(tempfile.gettempdir()))  # the store is created once all is checked


def _resolved(config: ScoreConfig, model: ScoringModel, source: ImageStream) -> ScoreConfig:
    """Return the settings with the actual engine and the actual columns to copy."""
    keep = tuple(source.schema().names)  # a folder of pictures always adds `path`
    return config.model_copy(update={"engine": model.engine, "keep": keep})


def resume_job(
    score_id: str, root: Path | str | None = None, index: dict[str, Any] | None = None
) -> Job:
    """Open a job that was begun; see also `require_unchanged`.

    Args:
        score_id: ID of the job.
        root: Root of the store.
        index: Index of the input in a process that scores a part of the job, which does not look
            at all of the input again; see `ImageStream.index`.

    Raises:
        StoreError: There is no such job, or its model, input or code has changed.
    """
    store = Store.open(root)
    path = staging(store, score_id) / "job.json"
    if score_id in store.score_ids():
        raise StoreError(f"scoring job {score_id} is already committed; there is nothing to resume")
    if not path.exists():
        raise StoreError(f"no scoring job {score_id} to resume in {store.root}; start a new one")
    record = read_model(path, _JobRecord, "a record of a job", remedy="start a new one")
    try:
        config = ScoreConfig.model_validate(record.config)
    except ValidationError as error:
        reason = problem(error, "config")
        raise StoreError(f"{path} is not a record of a job: {reason}; start a new one") from error
    started = datetime.fromisoformat(record.started_at)
    model, source = _open_model_and_input(store, config, record.pixel_scales, index)
    source.scales()  # infer missing scales now: an ambiguous scale must not count as a bad row
    shadow = resolve_shadow(store, config, model)
    job = Job(store, score_id, config, started, model, source, shadow=shadow)
    if index is not None:
        return job
    current = job.record()
    changed = [
        name
        for name in ("input", "model_digest", "shadow_digest", "code_version")
        if current[name] != getattr(record, name)
    ]
    if changed:
        raise _changed(score_id, changed)
    return job


def require_unchanged(job: Job) -> None:
    """Refuse to resume a job whose finished shards were made of files that have changed since.

    Raises:
        StoreError: A file has changed.
    """
    if have_files_changed(job.source, shards_of(job), job.folder):
        raise _changed(job.score_id, ["input"])


def _changed(score_id: str, names: Sequence[str]) -> StoreError:
    return StoreError(
        f"cannot resume scoring job {score_id}: its {' and '.join(names)} changed since; "
        "start a new one"
    )


def _open_model_and_input(
    store: Store,
    config: ScoreConfig,
    scales: list[float] | None = None,
    index: dict[str, Any] | None = None,
) -> tuple[ScoringModel, ImageStream]:
    model = resolve_model(store, config)
    if config.calibrated and model.temperature is None:
        raise ConfigError(
            f"model {config.model} has no temperature, so its scores cannot be calibrated; "
            "score a calibrated run, or set calibrated to false"
        )
    columns = Columns(
        config.id_column,
        config.keep,
        config.on_error == "stop",
        config.image_column,
        config.label_column,
    )
    options = StreamOptions(
        model.image_shape,
        columns,
        pixel_max=config.pixel_max,
        scales=scales,
        class_names=model.class_names,
        pictures_only=config.on_error == "stop",
        preprocessing=model.preprocessing,
        index=index,
        workspace=_workspace(store),
    )
    source = open_stream(config.input, options)
    schema = _row_schema(config, model, source)
    if config.where is not None:
        try:
            schema.empty_table().filter(parse_filter(config.where, schema.names))
        except (pa.ArrowException, TypeError) as error:
            raise ConfigError(
                f"where filter {config.where!r} compares values of different types: {error}"
            ) from error
    return model, source
