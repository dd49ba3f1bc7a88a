"""Refuse `.keras` archives that are small on the disk and enormous in memory, before they expand."""

import importlib
import io
import math
import re
import zipfile
from typing import Any

from nnbuild.errors import ContractError
from nnbuild.runtime.tensorflow import keras

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
_ENTRY = b"PK\x01\x02"  # of which a central directory has one for each member
_MOST_ENTRIES = 100
_MOST_JSON = 16 * 2**20
_MOST_OBJECTS = 100_000  # in the weights: groups and arrays
_FLOOR = 64 * 2**20  # bytes that may be declared without being in the file, such as an optimizer's


def require_few_entries(content: bytes, where: str) -> None:
    """Refuse an archive with a long directory, which alone takes minutes to read.

    Args:
        content: Bytes of the archive.
        where: Its name, for the message.

    Raises:
        ContractError: It has far more members than Keras writes.
    """
    if (entries := content.count(_ENTRY)) > _MOST_ENTRIES:
        raise ContractError(
            f"model {where} has {entries} members, expected {sorted(MEMBERS)}; export it again"
        )


def require_bounded_members(archive: zipfile.ZipFile, size: int, where: str) -> None:
    """Refuse an archive whose members are not Keras's, or are larger than the archive itself.

    Keras stores its members without compression, so none is larger than the file.

    Args:
        archive: Open for reading.
        size: Number of bytes of the file.
        where: Its name, for the message.

    Raises:
        ContractError: A member is missing, unknown, there twice, or too large.
    """
    names = [each.filename for each in archive.infolist()]
    if not {"config.json", "model.weights.h5"} <= set(names) <= MEMBERS:
        raise ContractError(
            f"model {where} holds {sorted(set(names))[:5]}, expected {sorted(MEMBERS)}; export it again"
        )
    if len(names) > len(set(names)):
        raise ContractError(f"model {where} holds the same member twice; export it again")
    for each in archive.infolist():
        most = _MOST_JSON if each.filename.endswith(".json") else size + _FLOOR
        if each.file_size > most:
            raise ContractError(
                f"model {where}: {each.filename} expands to {each.file_size} bytes, expected at "
                f"most {most}; export it again"
            )


def declared_weights(weights: bytes, where: str) -> int:
    """Return how many bytes the arrays of a weights file take in memory.

    Args:
        weights: The bytes of an HDF5 file.
        where: The model's name, for the message.

    Raises:
        ContractError: They are not all in the file itself, or far larger than it.
    """
    import h5py  # of Keras's own dependencies

    total = 0
    with h5py.File(io.BytesIO(weights), "r") as file:
        pending, seen = [file], set()
        while pending:
            group = pending.pop()
            for name in group:
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise ContractError(
                        f"model {where}: its weights hold a {type(link).__name__}, expected "
                        "arrays; export it again"
                    )
                found = group[name]
                place = h5py.h5o.get_info(found.id).addr
                if place in seen:
                    continue
                seen.add(place)
                if isinstance(found, h5py.Group):
                    pending.append(found)
                elif isinstance(found, h5py.Dataset):
                    total += _array_bytes(found, where)
                if len(seen) > _MOST_OBJECTS or total > len(weights) + _FLOOR:
                    raise ContractError(
                        f"model {where}: its weights declare {total} bytes in {len(seen)} objects, "
                        f"and have {len(weights)}; export it again"
                    )
    return total


def _array_bytes(found: Any, where: str) -> int:
    if found.external or found.is_virtual:
        raise ContractError(
            f"model {where}: its weights are in other files; save it by model.save('….keras')"
        )
    return math.prod(found.shape or ()) * int(found.dtype.itemsize)


def require_bounded_variables(config: dict[str, Any], weights: int, where: str) -> None:
    """Refuse a config with layers that are far larger than the stored weights.

    The network is built without memory for its variables: they know their shapes only.

    Args:
        config: The model's, which names no code to run.
        weights: Number of bytes that the stored arrays take in memory.
        where: The model's name, for the message.

    Raises:
        ContractError: The variables take more memory than the stored weights can fill.
    """
    try:
        with keras.StatelessScope(initialize_variables=False):
            keras.saving.deserialize_keras_object(
                {**config, "compile_config": None}, safe_mode=True
            )
    except Exception:  # noqa: BLE001, S110  (Keras says what is wrong when it reads the model)
        pass
    finally:
        size = _waiting_bytes()
        # What has no values yet would get them at the next chance.
        keras.utils.clear_session(free_memory=False)
    if size > weights + _FLOOR:
        raise ContractError(
            f"model {where}: its layers have {size} bytes of weights, and {weights} are stored; "
            "export it again"
        )


def _waiting_bytes() -> int:
    """Return how many bytes the variables will take that were made without values."""
    state: Any = importlib.import_module("keras.src.backend.common.global_state")
    waiting = state.get_global_attribute("uninitialized_variables", [])
    return sum(math.prod(each.shape) * _itemsize(each.dtype) for each in waiting)


def _itemsize(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1
