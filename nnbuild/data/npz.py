"""Read .npz files, zip files of .npy arrays, without NumPy's loader, which trusts the headers."""

import lzma
import math
import tokenize
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.names import find_arrays, scored_array
from nnbuild.data import archives
from nnbuild.data.file_tree import File
from nnbuild.data.locations import Location, location_at
from nnbuild.data.options import ReadOptions
from nnbuild.data.pixels import IN_MEMORY, Workspace, array_of
from nnbuild.errors import DataError

MAGIC, SUFFIX = b"PK", ".npz"
KEYS = ("x_train", "y_train", "x_test", "y_test")
_BAD_ZIP = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    NotImplementedError,
    RuntimeError,  # encrypted
    lzma.LZMAError,
)
_BAD_HEADER = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# For the whole process: `catch_warnings` would replace the filters of all threads.
warnings.filterwarnings("ignore", r"Reading `\.npy` or `\.npz` file required", UserWarning)


def names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file.

    Raises:
        DataError: The file is not a readable .npz file.
    """
    archives.require_regular(path)
    with _errors_as_data_errors(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read(
    path: Path,
    keys: Sequence[str] = KEYS,
    *,
    texts: Sequence[str] = (),
    workspace: Workspace = IN_MEMORY,
) -> tuple[NDArray[Any], ...]:
    """Read arrays of an .npz file, by default x_train, y_train, x_test and y_test, in this order.

    Args:
        path: Path of the file.
        keys: Names of the arrays.
        texts: Names of the arrays that may contain strings, such as labels.
        workspace: Where the arrays are held.

    Returns:
        The array of each key, of any numeric type and with unchecked shape.

    Raises:
        DataError: The file is not a readable .npz file, an array is missing or contains pickled
            objects, or its size contradicts its header.
    """
    packed = archives.require_regular(path)
    with _errors_as_data_errors(path), zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if missing := [key for key in keys if f"{key}.npy" not in members]:
            present = ", ".join(sorted(members)[:10]) or "nothing"
            raise DataError(
                f"{path}: lacks {', '.join(missing)}, it contains {present}; "
                f"expected {', '.join(keys)}"
            )
        needed = [members[f"{key}.npy"] for key in keys]
        if (size := sum(member.file_size for member in needed)) > archives.allowance(packed):
            raise DataError(f"{path}: {packed} bytes would expand to {size}; refused as a zip bomb")
        return tuple(
            _read_member(
                archive,
                members[f"{key}.npy"],
                f"{path}, {key}.npy",
                workspace,
                kinds="biufU" if key in texts else "biuf",
            )
            for key in keys
        )


def find_files(location: Location) -> list[File]:
    """Return the .npz files directly in a folder."""
    if SUFFIX not in location.suffixes:
        return []
    return [file for file in location.files if file.name.endswith(SUFFIX) and "/" not in file.name]


def read_file(path: Path, options: ReadOptions) -> tuple[dict[str, NDArray[Any]], str]:
    """Read the arrays of a dataset from one file; see `nnbuild.config.names` for their names.

    Returns:
        The arrays by their names in `nnbuild.data.arrays.Raw`, and an empty note.

    Raises:
        DataError: As for `read`, or the names of the arrays do not tell what they are.
    """
    roles = find_arrays(names(path), path, options.keys)
    keys = list(roles.values())
    texts = [key for (_, kind), key in roles.items() if kind == "labels"]
    arrays = read(path, keys, texts=texts, workspace=options.workspace)
    return {"_".join(role): array for role, array in zip(roles, arrays, strict=True)}, ""


def read_folder(path: Path, options: ReadOptions) -> tuple[dict[str, NDArray[Any]], str]:
    """Read a dataset from a folder with one .npz of all arrays, or an .npz for each array.

    Returns:
        See `read_file`.

    Raises:
        DataError: See `read_file`.
    """
    found = find_files(location_at(path))
    files = {PurePosixPath(file.name).stem: file.path for file in found}
    if len(files) == 1:
        return read_file(next(iter(files.values())), options)
    arrays = {}
    for role, stem in find_arrays(files, path, options.keys, grouped=True).items():
        keys = names(files[stem])
        if len(keys) != 1:
            raise DataError(f"{files[stem]}: contains {', '.join(keys[:10])}; expected one array")
        texts = keys if role[1] == "labels" else []
        (arrays["_".join(role)],) = read(
            files[stem], keys, texts=texts, workspace=options.workspace
        )
    return arrays, ""


def read_images(path: Path, workspace: Workspace = IN_MEMORY) -> NDArray[Any]:
    """Read the images to score: `images`, those of the test split, or the only unnamed array.

    Raises:
        DataError: As for `read`, or there is no such array.
    """
    return read(path, [scored_array(names(path), path)], workspace=workspace)[0]


def _read_member(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    where: str,
    workspace: Workspace,
    *,
    kinds: str,
) -> NDArray[Any]:
    with archive.open(member) as stream:
        shape, fortran, kind = _read_header(stream, where)
        if kind.kind not in kinds:
            content = "pickled objects" if kind.hasobject else f"values of type {kind}"
            raise DataError(f"{where}: contains {content}, which are refused; expected numbers")
        size = math.prod(shape) * kind.itemsize
        if min(shape, default=0) < 0 or stream.tell() + size != member.file_size:
            raise DataError(
                f"{where}: claims shape {shape} of {kind}, {size} bytes, "
                f"in a member of {member.file_size} bytes"
            )
        payload = archives.exact_chunks(stream, size, where)
        values = array_of(payload, kind, shape[::-1] if fortran else shape, workspace)
    return values.T if fortran else values


def _read_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise DataError(
            f"{where}: .npy version {version}, expected 1.0 or 2.0; "
            "save it with numpy.savez_compressed"
        )
    return _HEADERS[version](stream)


@contextmanager
def _errors_as_data_errors(path: Path) -> Iterator[None]:
    try:
        with archives.read_errors_as_data_errors(path):
            yield
    except (*_BAD_ZIP, *_BAD_HEADER) as error:
        reason = archives.reason_of(error)
        raise DataError(
            f"{path}: not a readable .npz file ({reason}); download or save it again"
        ) from error
