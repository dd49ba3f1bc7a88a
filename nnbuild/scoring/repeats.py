"""Find jobs that score the same input with the same model and columns, committed or waiting."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from nnbuild.errors import StoreError
from nnbuild.scoring.config import ScoreConfig
from nnbuild.store import Store, locks
from nnbuild.store.filesystem import os_errors_as_store_errors, read_json
from nnbuild.store.ids import is_run_id
from nnbuild.store.json_models import read_model

if TYPE_CHECKING:
    from nnbuild.scoring.job import Job

_ROW_SETTINGS = (
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

_RECORD_KEYS = ("config", "model_digest", "input", "code_version")


class _JobManifest(BaseModel):
    """The part of a job's manifest that determines its rows."""

    config: dict[str, Any]
    input: list[Any]


def candidates(store: Store, config: ScoreConfig) -> list[dict[str, Any]]:
    """Return the committed jobs with the same input address, oldest first."""
    columns = ["model_digest", "input"]
    jobs: list[dict[str, Any]] = store.read_table("score_jobs", None, columns).to_pylist()
    return [each for each in jobs if each["input"] == config.input]


def scored_as(
    store: Store, config: ScoreConfig, model_digest: str, identity: list[list[Any]]
) -> str | None:
    """Return the newest committed job that wrote the same rows.

    Args:
        store: Store to search.
        config: Settings of the job.
        model_digest: SHA-256 of the model file.
        identity: Identity of the input, as returned by `Input.identity`.
    """
    settings = config.model_dump(mode="json")
    for each in reversed(candidates(store, config)):
        if each["model_digest"] != model_digest:
            continue
        path = store.root / "scores" / each["score_id"] / "manifest.json"
        try:
            manifest = read_model(path, _JobManifest, "the manifest of a scoring job")
        except StoreError:
            if each["score_id"] in store.score_ids():
                raise
            continue  # deleted in the meantime
        if manifest.input == identity and all(
            manifest.config.get(name) == settings[name] for name in _ROW_SETTINGS
        ):
            return str(each["score_id"])
    return None


def fingerprint(job: "Job") -> str:
    """Return a digest that is equal for jobs that would write the same rows."""
    config = job.config.model_dump(mode="json")
    key = [{name: config[name] for name in _ROW_SETTINGS}, job.model.digest, job.identity]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def waiting_job(job: "Job") -> str | None:
    """Return the newest stopped job that can be resumed in place of a new one.

    It has the same settings, model, input and code, and no process works on it.
    """
    staging, record = job.folder.parent, job.record()
    if not staging.is_dir():
        return None
    with os_errors_as_store_errors(f"list {staging}"):
        names = [path.name for path in staging.iterdir() if path.name.startswith("score-")]
    ids = {name for each in names if is_run_id(name := each.removeprefix("score-"))}
    for score_id in sorted(ids - set(job.store.score_ids()), reverse=True):
        folder = staging / f"score-{score_id}"
        try:
            other = read_json(folder / "job.json")
        except StoreError:
            continue
        same = isinstance(other, dict) and all(
            other.get(name) == record[name] for name in _RECORD_KEYS
        )
        if same and not locks.is_held(folder):
            return score_id
    return None
