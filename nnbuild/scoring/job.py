"""Open a scoring job: create it or resume it, with its model and its input."""

import tempfile
from collections.abc import Sequence
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
from nnbuild.errors import ConfigError, StoreError
from nnbuild.runtime import environment
from nnbuild.scoring import claims, outputs
from nnbuild.scoring.config import NEWEST, ScoreConfig
from nnbuild.scoring.models import ScoringModel, resolve_model
from nnbuild.scoring.selection import parse_filter, require_known_types
from nnbuild.scoring.shadow import resolve_shadow
from nnbuild.scoring.shards import have_files_changed, plan
from nnbuild.scoring.table import score_schema
from nnbuild.store import Store
from nnbuild.store.filesystem import is_url, write_json
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


def row_schema(config: ScoreConfig, model: ScoringModel, source: ImageStream) -> pa.Schema:
    """Return the schema of the rows of a job with these settings, model and input."""
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
    schema = row_schema(config, model, source)
    if config.where is not None:
        try:
            schema.empty_table().filter(parse_filter(config.where, schema.names))
        except (pa.ArrowException, TypeError) as error:
            raise ConfigError(
                f"where filter {config.where!r} compares values of different types: {error}"
            ) from error
    return model, source
