"""Refuse `.keras` archives that are small on the disk and would be huge in memory."""

import importlib
import io
import math
import re
import zipfile
from contextlib import suppress
from typing import Any

from nnbuild.errors import ContractError
from nnbuild.runtime.tensorflow import keras

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
_ENTRY = b"PK\x01\x02"  # the signature of each member in the directory of an archive
_MAX_ENTRIES = 100
_MAX_JSON = 16 * 2**20
_MAX_OBJECTS = 100_000  # in the weights: groups and arrays
_FLOOR = 64 * 2**20  # bytes that may be declared and not stored, such as an optimizer's


def require_few_entries(content: bytes, where: str) -> None:
    """Refuse an archive with a long directory, which alone takes minutes to read.

    Args:
        content: Bytes of the archive.
        where: Its name, for the message.

    Raises:
        ContractError: It has far more members than Keras writes.
    """
    if (entries := content.count(_ENTRY)) > _MAX_ENTRIES:
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
        ContractError: A member is missing, unknown, duplicated, or too large.
    """
    names = [each.filename for each in archive.infolist()]
    if not {"config.json", "model.weights.h5"} <= set(names) <= MEMBERS:
        raise ContractError(
            f"model {where} has the members {sorted(set(names))[:5]}, expected {sorted(MEMBERS)}; "
            "export it again"
        )
    if len(names) > len(set(names)):
        raise ContractError(f"model {where} has a member twice; export it again")
    for each in archive.infolist():
        most = _MAX_JSON if each.filename.endswith(".json") else size + _FLOOR
        if each.file_size > most:
            raise ContractError(
                f"model {where}: {each.filename} expands to {each.file_size} bytes, expected at "
                f"most {most}; export it again"
            )


def declared_weights(weights: bytes, where: str) -> int:
    """Return the number of bytes that the arrays of a weights file take in memory.

    Args:
        weights: Bytes of an HDF5 file.
        where: Name of the model, for the message.

    Raises:
        ContractError: The arrays are not all in the file itself, or far larger than it.
    """
    import h5py  # a dependency of Keras

    total = 0
    with h5py.File(io.BytesIO(weights), "r") as file:
        pending, seen = [file], set()
        while pending:
            group = pending.pop()
            for name in group:
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise ContractError(
                        f"model {where}: its weights contain a {type(link).__name__}, expected "
                        "arrays; export it again"
                    )
                member = group[name]
                address = h5py.h5o.get_info(member.id).addr
                if address in seen:
                    continue
                seen.add(address)
                if isinstance(member, h5py.Group):
                    pending.append(member)
                elif isinstance(member, h5py.Dataset):
                    total += _array_bytes(member, where)
                if len(seen) > _MAX_OBJECTS or total > len(weights) + _FLOOR:
                    raise ContractError(
                        f"model {where}: its weights declare {total} bytes in {len(seen)} objects, "
                        f"and the file has {len(weights)}; export it again"
                    )
    return total


def _array_bytes(dataset: Any, where: str) -> int:
    if dataset.external or dataset.is_virtual:
        raise ContractError(
            f"model {where}: its weights are in other files; save it with model.save('….keras')"
        )
    return math.prod(dataset.shape or ()) * int(dataset.dtype.itemsize)


def require_bounded_variables(config: dict[str, Any], weights: int, where: str) -> None:
    """Refuse a config with layers that are far larger than the stored weights.

    The network is built with variables that have shapes, but no memory.

    Args:
        config: Configuration of a model that runs no code of its own.
        weights: Number of bytes that the stored arrays take in memory.
        where: Name of the model, for the message.

    Raises:
        ContractError: The variables take more memory than the stored weights can fill.
    """
    try:
        with (
            suppress(Exception),  # Keras reports it when it reads the model
            keras.StatelessScope(initialize_variables=False),
        ):
            keras.saving.deserialize_keras_object(
                {**config, "compile_config": None}, safe_mode=True
            )
    finally:
        size = _uninitialized_bytes()
        # Otherwise Keras would initialize these variables later.
        keras.utils.clear_session(free_memory=False)
    if size > weights + _FLOOR:
        raise ContractError(
            f"model {where}: its layers have {size} bytes of weights, and {weights} are stored; "
            "export it again"
        )


def _uninitialized_bytes() -> int:
    """Return the number of bytes of the variables that were created without values."""
    state: Any = importlib.import_module("keras.src.backend.common.global_state")
    variables = state.get_global_attribute("uninitialized_variables", [])
    return sum(math.prod(each.shape) * _itemsize(each.dtype) for each in variables)


def _itemsize(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1
