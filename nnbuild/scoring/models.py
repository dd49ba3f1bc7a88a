"""Which model scores: the champion's, a run's, or a file that is known by its digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnbuild.engines import Engine, OnnxEngine, engine_of_run
from nnbuild.engines.onnx_file import check_file
from nnbuild.errors import ConfigError, ContractError, StoreError
from nnbuild.evaluation.drift import REFERENCE, Summary
from nnbuild.runtime.environment import processors
from nnbuild.runtime.regular_files import irregular, read_regular
from nnbuild.scoring.config import ScoreConfig
from nnbuild.store import Store, champion
from nnbuild.store.filesystem import is_remote, os_errors_as_store_errors
from nnbuild.store.ids import is_run_id

CHAMPION = "champion"
_MOST_BYTES = 2**34  # of a model file


@dataclass(frozen=True)
class ScoringModel:
    """A model, verified, in the memory.

    Attributes:
        run_id: whose it is; None for a file.
        content: the file's bytes.
        digest: their sha256.
        image_shape: height, width and channels.
        classes: how many logits it gives.
        temperature: that the run was calibrated to; None for a file.
        factory: name of the user's function that it was built by, or of the named network.
        reference: counts of what it was validated on, by `plain` and `calibrated`; empty if none were kept.
        engine: What runs it: `onnx` or `keras`.
        reason: Why ONNX Runtime could not; empty if it can.
        class_names: One for each class; empty for a file.
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


def resolve_model(store: Store, config: ScoreConfig) -> ScoringModel:
    """Find a job's model, and verify it by its digest.

    Raises:
        StoreError: there is no such run, or no champion.
        ContractError: the file is missing, was changed, or was not exported.
        ConfigError: a file without `--digest`, or a digest without a file.
    """
    if config.model == CHAMPION or is_run_id(config.model):
        if config.digest is not None:
            raise ConfigError(
                "--digest is for a model file; the digest of a run's model is in its manifest"
            )
        store.require()
        return _of_run(
            store,
            champion.require(store) if config.model == CHAMPION else config.model,
            config.engine,
        )
    return _of_file(Path(config.model), config)


def _of_run(store: Store, run_id: str, engine: str) -> ScoringModel:
    manifest = store.manifest(run_id)
    if manifest["row"]["status"] != "succeeded":
        raise StoreError(f"run {run_id} failed and has no model; see `nnbuild runs`")
    fitting, reason = engine_of_run(manifest)
    if engine == "onnx" and reason:
        raise ContractError(
            f"run {run_id} was not exported to ONNX: {reason}; leave --engine out, and Keras scores"
        )
    engine = fitting if engine == "auto" else engine
    name = f"runs/{run_id}/model.{engine}"
    if name not in manifest["files"]:
        raise ContractError(f"run {run_id} has no model.{engine}; restore the run from a copy")
    content = _read(store.root / name)
    digest = _verified(content, manifest["files"][name]["sha256"], f"model {name}")
    data, calibrated = manifest["steps"]["load_data"], manifest["steps"].get("calibrate_model")
    height, width, channels = data["image_shape"]
    temperature = calibrated["temperature"] if calibrated else None
    factory = manifest["row"]["model"]
    shape, reference = (height, width, channels), _reference(store, manifest)
    return ScoringModel(
        run_id,
        content,
        digest,
        shape,
        data["classes"],
        temperature,
        factory,
        reference,
        engine,
        reason,
        tuple(data["class_names"]),
    )


def _reference(store: Store, manifest: Mapping[str, Any]) -> dict[str, Summary]:
    name = f"runs/{manifest['run_id']}/{REFERENCE}"
    if name not in manifest["files"]:
        return {}
    content = _read(store.root / name)
    _verified(content, manifest["files"][name]["sha256"], name)
    try:
        kept = json.loads(content)
        return {kind: Summary.from_json(kept[kind]) for kind in ("plain", "calibrated")}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{name} holds no counts to compare with; restore it from a copy"
        ) from error


def _of_file(path: Path, config: ScoreConfig) -> ScoringModel:
    name = f"model {path}"
    with os_errors_as_store_errors(f"read {name}"):
        try:
            kind = irregular(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise ConfigError(
                f"model {config.model!r} is neither champion, nor a run's id, nor a file; see `nnbuild runs`"
            ) from error
    if kind is not None:
        raise ConfigError(
            f"{name} is {kind}, not a file; give champion, a run's id or a .onnx file"
        )
    if config.digest is None:
        raise ConfigError(
            f"{name}: a file is trusted by its digest alone; give its sha256 as --digest"
        )
    if path.suffix != ".onnx" or config.engine == "keras":
        raise ConfigError(
            f"{name}: expected a .onnx file and --engine onnx; name a run for --engine keras"
        )
    content = _read(path)
    digest = _verified(content, config.digest, name)
    check_file(content, name)
    engine = OnnxEngine(content, 1, name=name)
    shape, classes = engine.shapes()
    engine.probe()
    return ScoringModel(None, content, digest, shape, classes, None, "", {})


def _read(path: Any) -> bytes:
    with os_errors_as_store_errors(f"read model {path}"):
        if is_remote(path):
            content: bytes = path.read_bytes()
            return content
        try:
            return read_regular(path, _MOST_BYTES)
        except ValueError as error:
            raise ContractError(f"model {path} {error}; give the model's own file") from error


def _verified(content: bytes, expected: str, name: str) -> str:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ContractError(
            f"{name} has sha256 {found}, expected {expected}; it was changed, restore it from a copy"
        )
    return found


def engine_of(model: ScoringModel, config: ScoreConfig, aside: Path) -> Engine:
    """The engine that runs a job's model.

    Args:
        model: verified.
        config: of the job.
        aside: a folder for a copy that Keras can read.
    """
    if model.engine == "onnx":
        name = f"the model of run {model.run_id}" if model.run_id else f"model {config.model}"
        return OnnxEngine(model.content, config.threads, name=name)
    from nnbuild.engines import KerasEngine
    from nnbuild.models import load_model
    from nnbuild.runtime.tensorflow import pin_threads

    pin_threads(config.threads or processors())  # TensorFlow's own choice ignores a CPU quota
    path = aside / "model.keras"
    path.write_bytes(model.content)
    return KerasEngine(load_model(path, model.digest, model_name=model.factory), config.batch_size)
