"""Resolve the model of a scoring job: the champion's, a run's, or a file with a known digest."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from nnbuild.data.preprocessing import METADATA_KEY, Preprocessing
from nnbuild.engines import Engine, OnnxEngine, engine_of_run
from nnbuild.engines.onnx_file import check_file
from nnbuild.errors import ConfigError, ContractError, StoreError
from nnbuild.evaluation.conformal import CONFORMAL, probability_threshold
from nnbuild.evaluation.drift import REFERENCE, Summary
from nnbuild.runtime.environment import processors
from nnbuild.runtime.regular_files import irregular, read_regular
from nnbuild.scoring.config import ScoreConfig
from nnbuild.store import Store, champion
from nnbuild.store.filesystem import is_remote, os_errors_as_store_errors
from nnbuild.store.ids import is_run_id
from nnbuild.store.json_models import problem
from nnbuild.store.manifests import Manifest

_MAX_BYTES = 2**34  # of a model file


@dataclass(frozen=True)
class ScoringModel:
    """A verified model in memory.

    Attributes:
        run_id: ID of its run; None for a file.
        content: Bytes of the model file.
        digest: SHA-256 of the content.
        image_shape: Height, width and channels of its images.
        classes: Number of logits.
        temperature: Temperature of the run's calibration; None for a file.
        factory: Name of the network, or of the user's function that built it.
        reference: Counts of the validation images for the drift check, under `plain` and
            `calibrated`; empty if the run has none.
        engine: Engine that runs it: `onnx` or `keras`.
        reason: Reason why ONNX Runtime cannot run it; empty if it can.
        class_names: Name of each class; empty for a file.
        preprocessing: Settings by which pictures become its images; None to use pictures as they
            are.
        energy_edges: Edges of the bins of the energy in the reference; None if it has none.
        set_threshold: Smallest probability of the classes in a prediction set; None if the job
            writes no sets.
    """

    run_id: str | None
    content: bytes
    digest: str
    image_shape: tuple[int, int, int]
    classes: int
    temperature: float | None
    factory: str
    reference: Mapping[str, Summary]
    engine: str = "onnx"
    reason: str = ""
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    energy_edges: NDArray[np.float64] | None = None
    set_threshold: float | None = None


def resolve_model(store: Store, config: ScoreConfig) -> ScoringModel:
    """Read a job's model and verify it by its digest.

    Raises:
        StoreError: There is no such run, or no champion.
        ContractError: The file is missing, was changed, or was never exported.
        ConfigError: A model file has no digest, or a run was given one; or `coverage` is set, and
            the model has no validation images, or too few.
    """
    if champion.is_name(config.model) or is_run_id(config.model):
        if config.digest is not None:
            raise ConfigError(
                "digest applies to model files only; the digest of a run's model is in its "
                "manifest",
                setting="digest",
                value=config.digest,
            )
        store.require()
        return model_for_scoring(store, champion.run_of(store, config.model), config)
    return _of_file(Path(config.model), config)


def model_for_scoring(store: Store, run_id: str, config: ScoreConfig) -> ScoringModel:
    """Read the model of a run with its drift reference, and verify it.

    Args:
        store: Store with the run.
        run_id: ID of the run.
        config: Settings of the job: its engine and its coverage.

    Raises:
        StoreError: There is no such run, or it failed.
        ContractError: The file is missing, was changed, or was never exported.
        ConfigError: `coverage` is set, and the model has no validation images, or too few.
    """
    manifest = store.manifest(run_id)
    if manifest.row.status != "succeeded":
        raise StoreError(f"run {run_id} failed and has no model; see `nnbuild runs`")
    model = model_of_run(store, manifest, config.engine)
    reference, edges = _reference(store, manifest)
    threshold = None if config.coverage is None else _set_threshold(store, manifest, config)
    return replace(model, reference=reference, energy_edges=edges, set_threshold=threshold)


def model_of_run(store: Store, manifest: Manifest, engine: str = "auto") -> ScoringModel:
    """Read the model of a run that succeeded, without its drift reference, and verify it.

    Args:
        store: Store with the run.
        manifest: Manifest of the run.
        engine: `onnx`, `keras`, or `auto` for ONNX Runtime if the run was exported.

    Raises:
        StoreError: The file cannot be read.
        ContractError: The file was changed, or was never exported.
    """
    run_id = manifest.run_id
    fitting, reason = engine_of_run(manifest)
    if engine == "onnx" and reason:
        raise ContractError(
            f"run {run_id} was not exported to ONNX: {reason}; set engine to keras or auto",
            setting="engine",
            value=engine,
        )
    engine = fitting if engine == "auto" else engine
    name = f"runs/{run_id}/model.{engine}"
    if name not in manifest.files:
        raise ContractError(f"run {run_id} has no model.{engine}; restore the run from a backup")
    content = _read(store.root / name)
    digest = _verified(content, manifest.files[name].sha256, f"model {name}")
    data, calibrated = manifest.steps.load_data, manifest.steps.calibrate_model
    return ScoringModel(
        run_id,
        content,
        digest,
        data.image_shape,
        data.classes,
        calibrated.temperature if calibrated else None,
        manifest.row.model,
        {},
        engine,
        reason,
        data.class_names,
        _preprocessing(data.preprocessing, f"run {run_id}"),
    )


def _preprocessing(settings: object, name: str) -> Preprocessing | None:
    """Return the preprocessing of a model, by the settings that are stored with it."""
    if settings is None:
        return None
    try:
        if isinstance(settings, str):
            return Preprocessing.model_validate_json(settings)
        return Preprocessing.model_validate(settings)
    except ValidationError as error:
        raise ContractError(
            f"{name} has preprocessing that this version of nnbuild does not know "
            f"({problem(error, METADATA_KEY)}); use the version that it was trained with"
        ) from error


def _reference(
    store: Store, manifest: Manifest
) -> tuple[dict[str, Summary], NDArray[np.float64] | None]:
    """Return the counts of the validation images, and the edges of their energies if it has any."""
    name = f"runs/{manifest.run_id}/{REFERENCE}"
    if name not in manifest.files:
        return {}, None
    content = _read(store.root / name)
    _verified(content, manifest.files[name].sha256, name)
    try:
        kept = json.loads(content)
        counts = {kind: Summary.from_json(kept[kind]) for kind in ("plain", "calibrated")}
        edges = kept.get("energy_edges")  # missing in the runs of earlier versions
        return counts, None if edges is None else np.asarray(edges, np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{name} is not a valid drift reference; restore it from a backup"
        ) from error


def _set_threshold(store: Store, manifest: Manifest, config: ScoreConfig) -> float:
    """Return the smallest probability of the classes in a prediction set of a job."""
    name = f"runs/{manifest.run_id}/{CONFORMAL}"
    if name not in manifest.files:
        raise ConfigError(
            f"run {manifest.run_id} was made before the probabilities that coverage needs were "
            "stored; retrain, or remove coverage",
            setting="coverage",
            value=config.coverage,
        )
    content = _read(store.root / name)
    _verified(content, manifest.files[name].sha256, name)
    kind = "calibrated" if config.calibrated else "plain"
    try:
        probabilities = pq.read_table(io.BytesIO(content), columns=[kind])[kind].to_numpy()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StoreError(f"{name} is damaged; restore it from a backup") from error
    return probability_threshold(probabilities, float(config.coverage or 0))


def _of_file(path: Path, config: ScoreConfig) -> ScoringModel:
    name = f"model {path}"
    with os_errors_as_store_errors(f"read {name}"):
        try:
            kind = irregular(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise ConfigError(
                f"model {config.model!r} is neither champion, nor champion:DATASET, nor a run ID, "
                "nor a file; see `nnbuild runs`",
                setting="model",
                value=config.model,
            ) from error
    if kind is not None:
        raise ConfigError(
            f"{name} is {kind}, not a file; expected champion, a run ID or a .onnx file",
            setting="model",
            value=config.model,
        )
    if config.coverage is not None:
        raise ConfigError(
            f"{name}: a model file has no validation images, which coverage needs; score a run, "
            "or remove coverage",
            setting="coverage",
            value=config.coverage,
        )
    if config.digest is None:
        raise ConfigError(
            f"{name}: a model file is only used with its SHA-256; set it as digest",
            setting="digest",
        )
    if path.suffix != ".onnx" or config.engine == "keras":
        raise ConfigError(
            f"{name}: expected a .onnx file and engine onnx; only runs can use engine keras",
            setting="engine",
            value=config.engine,
        )
    content = _read(path)
    digest = _verified(content, config.digest, name)
    check_file(content, name)
    engine = OnnxEngine(content, 1, name=name)
    shape, classes = engine.shapes()
    engine.probe()
    return ScoringModel(
        None,
        content,
        digest,
        shape,
        classes,
        None,
        "",
        {},
        preprocessing=_preprocessing(engine.metadata.get(METADATA_KEY), name),
    )


def _read(path: Path) -> bytes:
    with os_errors_as_store_errors(f"read model {path}"):
        if is_remote(path):
            return path.read_bytes()
        try:
            return read_regular(path, _MAX_BYTES)
        except ValueError as error:
            raise ContractError(f"model {path} {error}; expected a model file") from error


def _verified(content: bytes, expected: str, name: str) -> str:
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ContractError(
            f"{name} was changed: its SHA-256 is {digest}, expected {expected}; "
            "restore it from a backup"
        )
    return digest


def engine_of(
    model: ScoringModel, config: ScoreConfig, folder: Path, *, file: str = "model.keras"
) -> Engine:
    """Return the engine that runs a model with the settings of a job.

    Args:
        model: The verified model.
        config: Settings of the job.
        folder: Folder for a copy of the model, which Keras can only read from a file.
        file: Name of the copy.
    """
    name = f"the model of run {model.run_id}" if model.run_id else f"model {config.model}"
    return start_engine(
        model,
        folder,
        threads=config.threads,
        batch_size=config.batch_size,
        name=name,
        file=file,
    )


def start_engine(
    model: ScoringModel,
    folder: Path,
    *,
    threads: int | None,
    batch_size: int,
    name: str,
    file: str = "model.keras",
) -> Engine:
    """Return the engine that runs a model.

    Args:
        model: The verified model.
        folder: Folder for a copy of the model, which Keras can only read from a file.
        threads: Threads to use; all processors if None. It has no effect on Keras in a process in
            which TensorFlow is already in use.
        batch_size: Images per call of Keras.
        name: Name of the model for messages.
        file: Name of the copy.
    """
    if model.engine == "onnx":
        return OnnxEngine(model.content, threads, name=name)
    from nnbuild.engines import KerasEngine
    from nnbuild.models import load_model
    from nnbuild.runtime.tensorflow import pin_threads

    pin_threads(threads or processors())  # TensorFlow's own choice ignores a CPU quota
    path = folder / file
    path.write_bytes(model.content)
    return KerasEngine(load_model(path, model.digest, model_name=model.factory), batch_size)
