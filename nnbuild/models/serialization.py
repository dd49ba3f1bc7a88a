"""Save and load models: atomically, with the same bytes for the same weights, and verified.

A `.keras` file is an archive that can run code. Before Keras reads it, its bytes must have the
recorded digest, and its configuration must not contain a Lambda, or a class that does not belong to
Keras, to nnbuild or to the module of the user's function.
"""

import hashlib
import importlib
import io
import json
import random
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from nnbuild.config.schema import is_factory
from nnbuild.data.preprocessing import METADATA_KEY
from nnbuild.errors import ContractError, NnbuildError, one_line
from nnbuild.models import archive_limits
from nnbuild.models.custom import current_folder_importable, import_factory
from nnbuild.runtime.regular_files import read_regular
from nnbuild.runtime.tensorflow import keras
from nnbuild.store.filesystem import atomic_write, file_digest


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set Keras's global seed, and draw every seed in a block from it."""
    keras.utils.set_random_seed(seed)
    generator: Any = importlib.import_module("keras.src.random.seed_generator")
    shared = generator.python_random
    generator.python_random = random.Random(seed)  # noqa: S311  (initial weights are not secret)
    try:
        yield
    finally:
        generator.python_random = shared


_MAX_BYTES = 2**34
# Digests of the files that this process has written or checked. The check takes as long as reading
# the model, and each step of a run reads it.
_bounded: set[str] = set()
_EPOCH = (1980, 1, 1, 0, 0, 0)


def save_model(
    model: keras.Model, path: Path, preprocessing: Mapping[str, Any] | None = None
) -> str:
    """Save a model; equal models have equal files.

    Keras writes the time and memory addresses to the archive, which are removed.

    Args:
        model: Model to save.
        path: Path of the `.keras` file.
        preprocessing: Settings by which pictures become the model's images, for its metadata.

    Returns:
        SHA-256 of the file.
    """
    with atomic_write(path) as temporary:
        model.save(temporary)
        _make_canonical(temporary, preprocessing)
    digest = file_digest(path)
    _bounded.add(digest)
    return digest


def _make_canonical(path: Path, preprocessing: Mapping[str, Any] | None) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(members["metadata.json"])
    kept = {"keras_version": metadata["keras_version"]}
    if preprocessing is not None:
        kept[METADATA_KEY] = dict(preprocessing)
    members["metadata.json"] = json.dumps(kept).encode()
    members["config.json"] = _renumbered(members["config.json"].decode()).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), members[name])


def _renumbered(config: str) -> str:
    """Replace the addresses that identify shared objects by consecutive numbers."""
    numbers: dict[str, int] = {}
    return re.sub(
        r'(?<="shared_object_id": )\d+',
        lambda match: str(numbers.setdefault(match[0], len(numbers))),
        config,
    )


def load_model(
    path: Path, digest: str, *, model_name: str = "", seed: int = 0, compiled: bool = True
) -> keras.Model:
    """Load a model that `save_model` has saved.

    Args:
        path: Path of the `.keras` file.
        digest: Recorded SHA-256 of the file.
        model_name: Name of the model in the settings; the user's function is imported, for the
            classes that its module registers.
        seed: Seed for the layers without one.
        compiled: Whether to compile the model, if it was compiled when it was saved.

    Raises:
        ContractError: The file is missing, has another digest, is not a valid `.keras` file, or
            would run code.
    """
    content = _content(path)
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise ContractError(
            f"model {path} has sha256 {actual}, expected {digest}; it has changed, restore it from "
            "a copy"
        )
    factory = import_factory(model_name) if is_factory(model_name) else None
    refuse_code(content, str(path))
    # A layer of the user's may import modules when it is called, as it is while a model is read.
    importable = current_folder_importable if factory else nullcontext
    if digest not in _bounded:
        with seeded(seed), importable():
            _refuse_bombs(content, str(path))
        _bounded.add(digest)
    # Keras numbers objects without a name per process; a resumed run must have the same numbers.
    keras.utils.clear_session(free_memory=False)
    try:
        with seeded(seed), importable():
            return keras.saving.load_model(path, safe_mode=True, compile=compiled)
    except NnbuildError:
        raise
    except Exception as error:  # Keras can raise anything
        remedy = (
            f"register the classes of {model_name} with keras.saving"
            if factory
            else "restore it from a copy"
        )
        raise ContractError(
            f"Keras cannot read model {path}: {_first_line(error)}; {remedy}"
        ) from error


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_BYTES)
    except OSError as error:
        raise ContractError(
            f"cannot read model {path}: {error.strerror}; give the path of a .keras file"
        ) from error
    except ValueError as error:
        raise ContractError(f"model {path} {error}; give the path of a .keras file") from error


def refuse_code(content: bytes, where: str) -> None:
    """Refuse a `.keras` file that would run code or fill the memory, before Keras reads it.

    Args:
        content: Bytes of the file.
        where: Name of the file, for the message.

    Raises:
        ContractError: It is not a valid `.keras` file, has unexpected members, or contains a Lambda
            or a class that is not registered.
    """
    archive_limits.require_few_entries(content, where)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive_limits.require_bounded_members(archive, len(content), where)
            config = json.loads(archive.read("config.json"))
    except (
        zipfile.BadZipFile,
        ValueError,
        RecursionError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ContractError(
            f"model {where} is not a .keras file ({error}); save it with model.save('….keras')"
        ) from error
    for kind, module, registered, inner in _classes(config):
        if kind == "function" and _is_known_function(inner):
            continue
        if kind in {"Lambda", "__lambda__"} or module == "builtins":
            name = f"{kind} {inner!r}" if kind == "function" else kind.strip("_")
            raise ContractError(
                f"model {where} contains a {name} that runs code of its own; register it with "
                "keras.saving.register_keras_serializable, or write a registered layer instead"
            )
        known = keras.saving.get_registered_object(registered or kind) is not None
        if not _is_keras_module(module) and not known:
            raise ContractError(
                f"model {where} contains {module}.{kind}, which is neither Keras's nor registered "
                "by the module of the run's model; register it with "
                "keras.saving.register_keras_serializable"
            )


def _refuse_bombs(content: bytes, where: str) -> None:
    """Refuse weights or layers that are far larger than the file, after `refuse_code`."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            weights = archive_limits.declared_weights(archive.read("model.weights.h5"), where)
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ContractError(
            f"model {where} has no readable weights ({one_line(error)[:200]}); "
            "restore it from a copy"
        ) from error
    archive_limits.require_bounded_variables(config, weights, where)


def _is_keras_module(module: str | None) -> bool:
    return module is None or module == "keras" or module.startswith("keras.")


# The modules in which Keras looks up a function by its name alone.
_FUNCTIONS = (
    keras.activations,
    keras.constraints,
    keras.initializers,
    keras.losses,
    keras.metrics,
    keras.regularizers,
)


def _is_known_function(name: Any) -> bool:
    """Return whether a name is that of a registered function, or of a function of Keras."""
    if not isinstance(name, str):
        return False
    return keras.saving.get_registered_object(name) is not None or any(
        hasattr(module, name) for module in _FUNCTIONS
    )


def _classes(config: Any) -> Iterator[tuple[str, str | None, str | None, Any]]:
    """Yield class, module, registered name and configuration of each object in a configuration."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str):
                yield (
                    value["class_name"],
                    value.get("module"),
                    value.get("registered_name"),
                    value.get("config"),
                )
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
