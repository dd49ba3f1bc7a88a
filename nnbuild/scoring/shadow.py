"""The shadow of a scoring job: a challenger that scores the same rows as the job's model.

The input is read and decoded once. One engine returns the logits of both models, the job's model
first, so that the stages and processes of a job need not know about the shadow.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from nnbuild.data.streams import PICTURE_COLUMNS, Identifier
from nnbuild.engines import Engine, Logits, Pixels
from nnbuild.errors import ConfigError
from nnbuild.scoring.config import NEWEST, ScoreConfig
from nnbuild.scoring.models import ScoringModel, model_for_scoring
from nnbuild.scoring.table import score_schema
from nnbuild.store import Store, champion_history, schemas
from nnbuild.store.manifests import Manifest

TABLE = "shadow_scores"


def resolve_shadow(store: Store, config: ScoreConfig, model: ScoringModel) -> ScoringModel | None:
    """Read the shadow of a job and verify it by its digest.

    Args:
        store: Store with the runs.
        config: Settings of the job.
        model: Model of the job.

    Returns:
        The shadow; None if the job has none, or if `newest` is set and no run can be one.

    Raises:
        ConfigError: The run cannot be the shadow of this model, or of such a job.
        StoreError: There is no such run, or it failed.
    """
    if config.shadow is None:
        return None
    if config.output is not None:
        raise _refused(config, "its rows are compared in the tables of the store; remove output")
    if model.run_id is None:
        raise _refused(config, "a model file has no shadow; score a run, or remove shadow")
    mine = store.manifest(model.run_id)
    if config.shadow == NEWEST:
        run_id = newest_challenger(store, mine)
        if run_id is None:
            return None
    else:
        run_id = config.shadow
        theirs = store.manifest(run_id)
        if theirs.row.status == "succeeded" and (reason := difference(mine, theirs)) is not None:
            raise _refused(config, f"{reason}; choose another run, see `nnbuild runs`")
    # With its own engine: if the shadow was not exported, the job's model still uses ONNX Runtime.
    shadow = model_for_scoring(store, run_id, config.model_copy(update={"engine": "auto"}))
    if config.calibrated and shadow.temperature is None:
        raise _refused(config, "it has no temperature; choose a calibrated run, or set calibrated "
                       "to false")  # fmt: skip
    return shadow


def _refused(config: ScoreConfig, reason: str) -> ConfigError:
    return ConfigError(f"shadow {config.shadow}: {reason}", setting="shadow", value=config.shadow)


def newest_challenger(store: Store, model: Manifest) -> str | None:
    """Return the newest run that can be the shadow of a model and was never a champion, or None.

    Runs that the gate does not decide on, such as the trials of a sweep, are left out.

    Args:
        store: Store with the runs.
        model: Manifest of the run that made the model.
    """
    dataset = model.row.dataset
    past = {change.run_id for change in champion_history.histories(store).get(str(dataset), ())}
    rows = store.read_table("runs", None, ["status", "dataset", "promoted"]).to_pylist()
    for row in reversed(rows):
        if row["status"] != "succeeded" or row["dataset"] != dataset or row["promoted"]:
            continue
        if row["run_id"] in past:
            continue
        manifest = store.manifest(row["run_id"])
        decided = manifest.steps.decide
        if decided is None or decided.passed_over or manifest.fell_back:
            continue
        if difference(model, manifest) is None:
            return manifest.run_id
    return None


def difference(model: Manifest, shadow: Manifest) -> str | None:
    """Return why a run cannot score the rows of a model as its shadow; None if it can.

    Args:
        model: Manifest of the run that made the model.
        shadow: Manifest of the other run, which succeeded.
    """
    if model.run_id == shadow.run_id:
        return "it is the model of the job itself"
    if model.model_digest == shadow.model_digest:
        return f"its model is the same file as that of run {model.run_id}"
    mine, theirs = model.steps.load_data, shadow.steps.load_data
    if mine.image_shape != theirs.image_shape:
        return (
            f"its images are {_shape(theirs.image_shape)}, those of run {model.run_id} "
            f"{_shape(mine.image_shape)}"
        )
    if (mine.classes, mine.class_names) != (theirs.classes, theirs.class_names):
        return f"its classes are {_classes(theirs)}, those of run {model.run_id} {_classes(mine)}"
    if mine.preprocessing != theirs.preprocessing:
        return f"its preprocessing is not that of run {model.run_id}"
    return None


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _classes(data: Any) -> str:
    names = list(data.class_names)
    return f"{data.classes} ({', '.join([*names[:3], *(['…'] if len(names) > 3 else [])])})"


class PairedEngine:
    """The model of a job and its shadow as one engine.

    Args:
        model: Engine of the model.
        shadow: Engine of the shadow.
    """

    def __init__(self, model: Engine, shadow: Engine) -> None:
        self._model, self._shadow = model, shadow
        self.name = model.name

    def logits(self, images: Pixels) -> Logits:
        """Compute the logits of a batch with both models.

        Args:
            images: Images, uint8, shape (n, height, width, channels), n of 1 or more.

        Returns:
            Logits, float32, shape (2n, classes): all those of the model, then all of the shadow.
        """
        return np.concatenate([self._model.logits(images), self._shadow.logits(images)])


def by_model(logits: Logits, images: int) -> Iterator[Logits]:
    """Yield the logits of each model from those of a `PairedEngine`, or of a single engine.

    Args:
        logits: Result of the engine.
        images: Number of images in the batch.
    """
    for first in range(0, len(logits), images):
        yield logits[first : first + images]


def shadow_schema(config: ScoreConfig, model: ScoringModel, identifier: Identifier) -> pa.Schema:
    """Return the schema of a job's rows in `shadow_scores`.

    Of the columns to copy it has only the path of a picture, which identifies the row.

    Args:
        config: Settings of the job.
        model: The shadow.
        identifier: What identifies a row.
    """
    schema = score_schema(
        config,
        model.classes,
        PICTURE_COLUMNS if identifier == "path" else pa.schema([]),
        class_names=model.class_names,
        keyed=identifier == "text",
    )
    return schema.append(schemas.CHAMPION_PREDICTED)
