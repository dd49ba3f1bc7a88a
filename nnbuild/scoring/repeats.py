"""Tell whether an input was scored before with the same model and the same columns."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from nnbuild.scoring.config import ScoreConfig
from nnbuild.store import Store
from nnbuild.store.json_models import read_model

if TYPE_CHECKING:
    from nnbuild.scoring.job import Job

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


class _JobManifest(BaseModel):
    """The part of a committed job's manifest that says whether it has scored the same."""

    config: dict[str, Any]
    input: list[Any]


def candidates(store: Store, config: ScoreConfig) -> list[dict[str, Any]]:
    """Return the committed jobs that scored the same address, oldest first."""
    columns = ["model_digest", "input"]
    jobs: list[dict[str, Any]] = store.read_table("score_runs", None, columns).to_pylist()
    return [each for each in jobs if each["input"] == config.input]


def scored_as(
    store: Store, config: ScoreConfig, model_digest: str, identity: list[list[Any]]
) -> str | None:
    """Return the newest committed job that wrote the same rows.

    Args:
        store: Where the job is looked for.
        config: What would be scored, and how.
        model_digest: Of the model file.
        identity: Of the input, as `Input.identity` gives it.
    """
    wanted = config.model_dump(mode="json")
    for each in reversed(candidates(store, config)):
        if each["model_digest"] != model_digest:
            continue
        path = store.root / "scores" / each["score_id"] / "manifest.json"
        manifest = read_model(path, _JobManifest, "the manifest of a scoring job")
        if manifest.input == identity and all(
            manifest.config.get(name) == wanted[name] for name in _SAME_ROWS
        ):
            return str(each["score_id"])
    return None


def fingerprint(job: "Job") -> str:
    """Return a digest that jobs share if they would write the same rows."""
    config = job.config.model_dump(mode="json")
    same = [{name: config[name] for name in _SAME_ROWS}, job.model.digest, job.identity]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
