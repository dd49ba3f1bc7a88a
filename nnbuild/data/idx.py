"""Read IDX files, the format of MNIST: zeros, type, number of dimensions, sizes, values.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database", section on file formats.
"""

import hashlib
import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.names import TEST, TRAIN, split_named
from nnbuild.data import archives
from nnbuild.data.file_tree import File, path_exists
from nnbuild.data.locations import Location, location_at
from nnbuild.data.options import ReadOptions
from nnbuild.data.pixels import IN_MEMORY, Workspace, array_of
from nnbuild.errors import DataError

_NAME = re.compile(
    r"^(?:(?P<set>.+?)[-_.])?(?P<split>[a-z0-9]+)[-_.](?P<kind>images|labels)[-_.]idx\d"
    r"[-_.](?:ubyte|int)(?:\.gz)?$",
    re.IGNORECASE,
)
_QMNIST_COLUMNS = 8  # the class, then the writer, the form and so on
_STACK = 3  # dimensions of grayscale images: n, height, width
_MATRIX = 2  # dimensions of extended labels: n, columns

HINTS = (b"\0\0", b"\x1f\x8b")
"""First bytes of plain and of gzipped IDX files."""
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAGIC = 4  # bytes
_MAX_DIMENSIONS = 4  # images, height, width, channels
_MAX_BYTES = 2**62  # just below NumPy's limit

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""File names of MNIST: training images and labels, test images and labels."""


def read(path: Path, workspace: Workspace = IN_MEMORY) -> NDArray[Any]:
    """Read the array in an IDX file, gzipped or not.

    Args:
        path: Path of the file.
        workspace: Where the array is held.

    Returns:
        Array with the type and shape of the header, at most four dimensions: uint8 of shape
        (n, 28, 28) for the images of MNIST.

    Raises:
        DataError: The file is missing, truncated or damaged, is not an IDX file, or its header
            claims more data than it can contain.
    """
    with archives.open_maybe_gzipped(path) as (stream, limit):
        kind, shape = _read_header(stream, path)
        size = math.prod(shape) * kind.itemsize
        # A size of 0 makes the product 0, whatever the other sizes are.
        if size > limit or math.prod(max(each, 1) for each in shape) * kind.itemsize > _MAX_BYTES:
            raise DataError(
                f"{path}: claims shape {shape}, {size} bytes, but can contain at most {limit}; "
                "download it again"
            )
        return array_of(archives.exact_chunks(stream, size, path), kind, shape, workspace)


def _read_header(stream: IO[bytes], path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(_MAGIC)
    if (
        len(magic) < _MAGIC
        or magic[:2] != b"\0\0"
        or magic[2] not in _TYPES
        or not 1 <= magic[3] <= _MAX_DIMENSIONS
    ):
        raise DataError(
            f"{path}: starts with {magic.hex() or 'nothing'}, "
            "expected an IDX header such as 00000803"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: truncated in its header, expected {magic[3]} sizes of 4 bytes")
    return np.dtype(_TYPES[magic[2]]), struct.unpack(f">{magic[3]}I", sizes)


def read_all(folder: Path) -> tuple[NDArray[Any], ...]:
    """Read training images and labels, test images and labels from MNIST's four files.

    Returns:
        Four arrays: images of shape (n, height, width), labels of shape (n,).

    Raises:
        DataError: A file is missing or invalid; see `read`.
    """
    paths = require_all(folder)
    return tuple(read(paths[name]) for name in FILES)


def require_all(folder: Path) -> dict[str, Path]:
    """Return the paths of MNIST's four files in a folder, by their names in `FILES`.

    Raises:
        DataError: A file is missing.
    """
    paths = find(folder)
    if missing := [name for name in FILES if name not in paths]:
        present = ", ".join(paths) or "nothing"
        raise DataError(
            f"{folder}: has {present} but lacks {', '.join(missing)}; expected all four files"
        )
    return paths


def payload_digest(array: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an array as an IDX file, whatever format it was read from.

    Args:
        array: uint8, one to four dimensions.

    Returns:
        64 hexadecimal digits.
    """
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def find(folder: Path) -> dict[str, Path]:
    """Find MNIST's four files in a folder, under the usual variants of their names.

    Returns:
        Path of each existing file by its name in `FILES`. Variants are `train-images-idx3-ubyte`
        and `train-images.idx3-ubyte`, with or without `.gz`; files without it are preferred because
        they are faster to read.
    """
    result = {}
    for name in FILES:
        stems = (name, name.replace("-idx", ".idx"))
        variants = (folder / (stem + end) for end in ("", ".gz") for stem in stems)
        paths = [path for path in variants if path_exists(path)]
        if paths:
            result[name] = paths[0]
    return result


Files = dict[tuple[str, str], Path]
"""Path of a file by split and kind (`images`, `labels`)."""


def find_files(location: Location) -> list[File]:
    """Return the IDX files of the dataset in a folder.

    Raises:
        DataError: Some of the files are missing, or they belong to several datasets.
    """
    found = _find_dataset(location)
    return [] if found is None else [File(path, path.name) for path in found[1].values()]


def _find_dataset(location: Location) -> tuple[str, Files] | None:
    if location.kind != "folder":
        return None
    if find(location.path):
        require_all(location.path)
    return find_set(location.path, location.top_names)


def read_folder(path: Path, options: ReadOptions) -> tuple[dict[str, NDArray[Any]], str]:
    """Read the arrays of a dataset from its IDX files in a folder.

    Returns:
        The arrays by their names in `nnbuild.data.arrays.Raw`, and a note if the images were
        transposed.

    Raises:
        DataError: As for `read` and `find_files`.
    """
    found = _find_dataset(location_at(path))
    if found is None:
        raise DataError(f"{path}: no IDX files; expected those of MNIST or EMNIST")
    prefix, files = found
    arrays = {
        "_".join(role): (read_images if role[1] == "images" else read_labels)(
            file, options.workspace
        )
        for role, file in files.items()
    }
    return arrays, "; images transposed" * is_transposed(prefix)


def find_set(folder: Path, names: Sequence[str]) -> tuple[str, Files] | None:
    """Find the IDX files of a dataset with other file names, such as EMNIST.

    Args:
        folder: Folder with the files.
        names: Names of the files in the folder.

    Returns:
        Common prefix of the names, such as `emnist-letters`, and the path of each file by split and
        kind (`images`, `labels`); None if there are no such files.

    Raises:
        DataError: There are files of several datasets, or no training images and labels.
    """
    sets: dict[str, Files] = {}
    for name in sorted(names, reverse=True):  # a plain file overrides its gzipped copy
        match = _NAME.match(name)
        split = split_named(match["split"].lower().replace("t10k", TEST)) if match else None
        if match and split:
            files = sets.setdefault((match["set"] or "").lower(), {})
            files[split, match["kind"].lower()] = folder / name
    if not sets:
        return None
    if len(sets) > 1:
        raise DataError(
            f"{folder}: contains several datasets, {', '.join(sorted(sets))}; "
            "use a separate folder for each"
        )
    ((prefix, files),) = sets.items()
    for split in {TRAIN, *(split for split, _ in files)}:
        for kind in ("images", "labels"):
            if (split, kind) not in files:
                present = ", ".join(sorted(path.name for path in files.values()))
                raise DataError(
                    f"{folder}: lacks the {kind} of {split} among {present}; add the file"
                )
    return prefix, files


def read_images(path: Path, workspace: Workspace = IN_MEMORY) -> NDArray[Any]:
    """Read images; those of EMNIST are transposed, because its files swap rows and columns.

    Raises:
        DataError: See `read`.
    """
    images = read(path, workspace)
    if is_transposed(path.name) and images.ndim == _STACK:
        return images.transpose(0, 2, 1)
    return images


def is_transposed(name: str) -> bool:
    """Return whether the images of a file have rows and columns swapped, by its name."""
    return name.lower().startswith("emnist")


def read_labels(path: Path, workspace: Workspace = IN_MEMORY) -> NDArray[Any]:
    """Read labels; for QMNIST the first of eight columns, which is the class.

    Raises:
        DataError: See `read`.
    """
    labels = read(path, workspace)
    extended = labels.ndim == _MATRIX and labels.shape[1] == _QMNIST_COLUMNS
    return labels[:, 0] if extended and path.name.lower().startswith("qmnist") else labels
