"""Opening a scoring job: a new one, one that is named, or one that was stopped and is asked for again."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from nnbuild import machine
from nnbuild.errors import ConfigError, StoreError
from nnbuild.scoring.columns import score_schema
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.inputs import Input, open_input
from nnbuild.scoring.jobs import Job, staging
from nnbuild.scoring.models import ScoringModel, resolve_model
from nnbuild.scoring.rows import Columns
from nnbuild.scoring.where import parse
from nnbuild.store import Store, locks
from nnbuild.store.files import explained, read_json, write_json
from nnbuild.store.names import is_run_id, new_run_id
from nnbuild.store.remote import is_url, open_root


def open_job(
    config: ScoreConfig, root: Path | str | None = None, *, now: datetime | None = None
) -> Job:
    """Begin a job, or take up one that was stopped: of the same input, model and options.

    What can be refused is refused before anything is written.

    Args:
        config: what is scored, by which model, and how.
        root: of the store.
        now: aware time of the start; the clock's if not given.

    Raises:
        InputError: the model, the input or an option cannot be used; the store is as it was.
    """
    store, started = Store(root), now or datetime.now(UTC)
    model, source = _opened(store, config)
    if model.run_id is not None:
        config = config.model_copy(update={"model": model.run_id})
    job = Job(
        store,
        new_run_id(started, max(store.scored(), default=None)),
        config,
        started,
        model,
        source,
    )
    if (score_id := _waiting(job)) is not None:
        return resume_job(score_id, root)
    if config.output is not None:
        _require_new(open_root(config.output) if is_url(config.output) else Path(config.output))
    # The evidence for the scale of floats is looked for once; whoever makes a shard recalls it.
    write_json(job.folder / "job.json", _record(job) | {"pixel_scales": source.scales()})
    return job


_SAME = ("config", "model_digest", "input", "code_version")


def _waiting(job: Job) -> str | None:
    """The newest job in staging that nobody works on and that would write just the same rows."""
    folder, wanted = job.folder.parent, _record(job)
    if not folder.is_dir():
        return None
    with explained(f"list {folder}"):
        names = (
            path.name.removeprefix("score-")
            for path in folder.iterdir()
            if path.name.startswith("score-")
        )
        ids = sorted((name for name in names if is_run_id(name)), reverse=True)
    done = set(job.store.scored())
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


_SAME_ROWS = (
    "input",
    "output",
    "keep",
    "id_column",
    "image_column",
    "label_column",
    "pixel_max",
    "logits",
    "top_k",
    "where",
    "calibrated",
    "engine",
)


def scored_before(store: Store, config: ScoreConfig) -> str | None:
    """The newest committed job that has scored just this: the same model file, input and columns.

    Args:
        store: whose `score_runs` is asked.
        config: of what would be scored.

    Raises:
        InputError: the model or the input cannot be used.
    """
    columns = ["model_digest", "input"]
    candidates = [
        each
        for each in store.read_table("score_runs", None, columns).to_pylist()
        if each["input"] == config.input
    ]
    if not candidates:
        return None
    model, source = _opened(store, config)
    wanted, identity = config.model_dump(mode="json"), source.identity()
    for each in reversed(candidates):
        if each["model_digest"] != model.digest:
            continue
        manifest = read_json(store.root / "scores" / each["score_id"] / "manifest.json")
        held = manifest["config"]
        if manifest["input"] == identity and all(
            held.get(name) == wanted[name] for name in _SAME_ROWS
        ):
            return str(each["score_id"])
    return None


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
        raise StoreError(
            f"{path} is no record of a job ({type(error).__name__}); begin a new one"
        ) from error
    model, source = _opened(store, config, held.get("pixel_scales"))
    source.scales()  # found now if they are not recorded: an unclear scale is not the fault of a row
    job = Job(store, score_id, config, started, model, source)
    record = _record(job)
    changed = [
        name for name in ("input", "model_digest", "code_version") if record[name] != held.get(name)
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
    source = open_input(
        config.input,
        Columns(config.id_column, config.keep, config.image_column, config.label_column),
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
        "input": job.source.identity(),
        "code_version": machine.code_version(),
    }


def _require_new(folder: Path) -> None:
    with explained(f"look into --output {folder}"):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken:
        raise ConfigError(f"--output {folder}: holds something already; give a new folder")
