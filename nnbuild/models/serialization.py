"""Model files: written whole and the same for the same weights; read only if they are what was written.

A `.keras` file is an archive that can name code to run. So it is looked at before Keras may read it: the bytes
must have the digest that was recorded, and its config may name no Lambda and no class but Keras's own, this
project's, and those that the run's own model function brings.
"""

import hashlib
import importlib
import io
import json
import random
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from nnbuild.config.schema import is_factory
from nnbuild.errors import ContractError, NnbuildError, one_line
from nnbuild.models import archive_limits
from nnbuild.models.custom import current_folder_importable, import_factory
from nnbuild.runtime.regular_files import read_regular
from nnbuild.runtime.tensorflow import keras
from nnbuild.store.filesystem import atomic_write, file_digest


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let every seed that Keras draws in this block follow from `seed`; also sets Keras's global seed."""
    keras.utils.set_random_seed(seed)
    drawing: Any = importlib.import_module("keras.src.random.seed_generator")
    shared = drawing.python_random
    drawing.python_random = random.Random(seed)  # noqa: S311  (no secret hangs on a model's first weights)
    try:
        yield
    finally:
        drawing.python_random = shared


_MOST_BYTES = 2**34
_EPOCH = (1980, 1, 1, 0, 0, 0)


def save_model(model: Any, path: Path) -> str:
    """Write a model.

    Keras writes the time and addresses of memory into the archive; they are taken out again, so that equal models
    have equal files.

    Returns:
        sha256 of the file.
    """
    with atomic_write(path) as aside:
        model.save(aside)
        _make_canonical(aside)
    return file_digest(path)


def _make_canonical(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(members["metadata.json"])
    members["metadata.json"] = json.dumps({"keras_version": metadata["keras_version"]}).encode()
    members["config.json"] = _renumbered(members["config.json"].decode()).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), members[name])


def _renumbered(config: str) -> str:
    """A config in which shared objects are numbered as they come, and not by their addresses."""
    numbers: dict[str, int] = {}
    return re.sub(
        r'(?<="shared_object_id": )\d+',
        lambda found: str(numbers.setdefault(found[0], len(numbers))),
        config,
    )


def load_model(
    path: Path, digest: str, *, model_name: str = "", seed: int = 0, compiled: bool = True
) -> Any:
    """Read a model that `save_model` wrote.

    Args:
        path: a `.keras` file.
        digest: sha256 that was recorded for it.
        model_name: of the config; a user's function is imported first, for the classes that its module registers.
        seed: for layers that were given none; the same seed gives the same draws.
        compiled: whether it is to be compiled, if it was.

    Returns:
        The model.

    Raises:
        ContractError: the file is missing, is no `.keras` file, has another digest, or names code to run.
    """
    content = _content(path)
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ContractError(
            f"model {path} has sha256 {found}, expected {digest}; it was changed, restore it from a copy"
        )
    factory = import_factory(model_name) if is_factory(model_name) else None
    refuse_code(content, str(path))
    # A layer of the user's may import more when it is called, as it is while a model is read.
    importable = current_folder_importable if factory else nullcontext
    with seeded(seed), importable():
        _refuse_bombs(content, str(path))
    # Keras numbers what has no name through the life of a process; a resumed run must come to the same numbers.
    keras.utils.clear_session(free_memory=False)
    try:
        with seeded(seed), importable():
            return keras.saving.load_model(path, safe_mode=True, compile=compiled)
    except NnbuildError:
        raise
    except Exception as error:  # Keras raises whatever it meets
        mend = (
            f"register the classes of {model_name} with keras.saving"
            if factory
            else "restore it from a copy"
        )
        raise ContractError(
            f"Keras cannot read model {path}: {_first_line(error)}; {mend}"
        ) from error


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise ContractError(
            f"cannot read model {path}: {error.strerror}; give the path of a .keras file"
        ) from error
    except ValueError as error:
        raise ContractError(f"model {path} {error}; give the path of a .keras file") from error


def refuse_code(content: bytes, where: str) -> None:
    """Refuse a `.keras` file that would run code or fill the memory, before Keras sees it.

    Args:
        content: the file's bytes.
        where: its name, for the message.

    Raises:
        ContractError: it is no `.keras` archive, holds more than it should, or names a Lambda or a
            class that is not registered.
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
            f"model {where} is no .keras file ({error}); save it by model.save('….keras')"
        ) from error
    for kind, module, registered, inner in _classes(config):
        if kind == "function" and _is_known_function(inner):
            continue
        if kind in {"Lambda", "__lambda__"} or module == "builtins":
            name = f"{kind} {inner!r}" if kind == "function" else kind.strip("_")
            raise ContractError(
                f"model {where} holds a {name} that runs code of its own; register it with "
                "keras.saving.register_keras_serializable, or write a registered layer instead"
            )
        known = keras.saving.get_registered_object(registered or kind) is not None
        if not _is_kerass_own(module) and not known:
            raise ContractError(
                f"model {where} holds {module}.{kind}, which is neither Keras's nor registered by the run's own model "
                "function; register it with keras.saving.register_keras_serializable"
            )


def _refuse_bombs(content: bytes, where: str) -> None:
    """Refuse weights or layers that are far larger than the file; `refuse_code` has passed it."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            weights = archive_limits.declared_weights(archive.read("model.weights.h5"), where)
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ContractError(
            f"model {where} has no readable weights ({one_line(error)[:200]}); restore it from a copy"
        ) from error
    archive_limits.require_bounded_variables(config, weights, where)


def _is_kerass_own(module: str | None) -> bool:
    return module is None or module == "keras" or module.startswith("keras.")


# Where Keras looks for a function that is known by its name alone.
_FUNCTIONS = (
    keras.activations,
    keras.constraints,
    keras.initializers,
    keras.losses,
    keras.metrics,
    keras.regularizers,
)


def _is_known_function(name: Any) -> bool:
    """Whether a function is registered, or Keras's own: nothing else is looked up by such a name."""
    if not isinstance(name, str):
        return False
    return keras.saving.get_registered_object(name) is not None or any(
        hasattr(module, name) for module in _FUNCTIONS
    )


def _classes(config: Any) -> Iterator[tuple[str, str | None, str | None, Any]]:
    """Class, module, registered name and own config of every object in a config."""
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
