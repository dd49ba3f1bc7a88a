"""IDX, the format of MNIST's files: two zero bytes, a type, the number of dimensions, their sizes, values.

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
from nnbuild.data.file_tree import path_exists
from nnbuild.errors import DataError

_NAME = re.compile(
    r"^(?:(?P<set>.+?)[-_.])?(?P<split>[a-z0-9]+)[-_.](?P<kind>images|labels)[-_.]idx\d"
    r"[-_.](?:ubyte|int)(?:\.gz)?$",
    re.IGNORECASE,
)
_QMNIST_COLUMNS = 8  # the class, then the writer, the form and so on

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAGIC = 4  # bytes
_MOST_DIMENSIONS = 4  # images, height, width, channels
_MOST_BYTES = 2**62  # NumPy's own bound is just above

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""MNIST's names: training images and labels, test images and labels."""


def read(path: Path) -> NDArray[Any]:
    """The array in an IDX file, gzipped or not.

    Returns:
        Of the type and the shape that the header says, at most four dimensions, as MNIST's images (n, 28, 28) uint8.

    Raises:
        DataError: missing, truncated, damaged, no IDX file, or a header that promises more than it can hold.
    """
    with archives.opened(path) as (stream, limit):
        kind, shape = _read_header(stream, path)
        size = math.prod(shape) * kind.itemsize
        # A size of 0 makes the product 0, whatever the other sizes are.
        if size > limit or math.prod(max(each, 1) for each in shape) * kind.itemsize > _MOST_BYTES:
            raise DataError(
                f"{path}: claims shape {shape}, {size} bytes, and can hold {limit}; fetch it again"
            )
        payload = archives.read_exactly(stream, size, path)
    return np.frombuffer(payload, kind).reshape(shape)


def _read_header(stream: IO[bytes], path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(_MAGIC)
    if (
        len(magic) < _MAGIC
        or magic[:2] != b"\0\0"
        or magic[2] not in _TYPES
        or not 1 <= magic[3] <= _MOST_DIMENSIONS
    ):
        raise DataError(
            f"{path}: starts with {magic.hex() or 'nothing'}, expected an IDX header such as 00000803"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: truncated in its header, expected {magic[3]} sizes of 4 bytes")
    return np.dtype(_TYPES[magic[2]]), struct.unpack(f">{magic[3]}I", sizes)


def read_all(folder: Path) -> tuple[NDArray[Any], ...]:
    """Training images and labels, test images and labels from a folder of MNIST's four files.

    Returns:
        Four arrays, as `read` gives them: images of shape (n, height, width), labels of shape (n,).

    Raises:
        DataError: a file is missing, or as `read` says.
    """
    found = require_all(folder)
    return tuple(read(found[name]) for name in FILES)


def require_all(folder: Path) -> dict[str, Path]:
    """Return the path of each of MNIST's four files in a folder, by its name in `FILES`.

    Raises:
        DataError: A file is missing.
    """
    found = find(folder)
    if missing := [name for name in FILES if name not in found]:
        held = ", ".join(found) or "nothing"
        raise DataError(
            f"{folder}: has {held} but lacks {', '.join(missing)}; expected all four files"
        )
    return found


def payload_digest(array: NDArray[np.uint8]) -> str:
    """sha256 of the IDX file that this array would be, so that any packaging of the same data has one digest.

    Args:
        array: uint8, any shape of one to four dimensions.

    Returns:
        64 hexadecimal digits.
    """
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def find(folder: Path) -> dict[str, Path]:
    """Which of MNIST's four files a folder holds, under the usual variants of their names.

    Returns:
        The path of each that was found, by its name in `FILES`: `train-images-idx3-ubyte` and
        `train-images.idx3-ubyte`, with `.gz` or without (without is taken first: it is faster).
    """
    found = {}
    for name in FILES:
        variants = (name + end for end in ("", ".gz"))
        dotted = (name.replace("-idx", ".idx") + end for end in ("", ".gz"))
        paths = [
            path
            for path in (folder / variant for variant in (*variants, *dotted))
            if path_exists(path)
        ]
        if paths:
            found[name] = paths[0]
    return found


Files = dict[tuple[str, str], Path]


def find_set(folder: Path, names: Sequence[str]) -> tuple[str, Files] | None:
    """Find the IDX files of a dataset that is published in files of its own names, as EMNIST is.

    Args:
        folder: Where the files are.
        names: Of its files.

    Returns:
        The name that the files begin with, such as `emnist-letters`, and the path of each by split
        and kind (`images`, `labels`); None if there are no such files.

    Raises:
        DataError: The files of several datasets, or no training images and labels among them.
    """
    sets: dict[str, Files] = {}
    for name in sorted(names, reverse=True):  # of two packagings of a file the plain one is taken
        found = _NAME.match(name)
        split = split_named(found["split"].lower().replace("t10k", TEST)) if found else None
        if found and split:
            files = sets.setdefault((found["set"] or "").lower(), {})
            files[split, found["kind"].lower()] = folder / name
    if not sets:
        return None
    if len(sets) > 1:
        raise DataError(
            f"{folder}: holds several datasets, {', '.join(sorted(sets))}; "
            "put the files of one into a folder of its own"
        )
    ((prefix, files),) = sets.items()
    for split in {TRAIN, *(split for split, _ in files)}:
        for kind in ("images", "labels"):
            if (split, kind) not in files:
                held = ", ".join(sorted(path.name for path in files.values()))
                raise DataError(f"{folder}: lacks the {kind} of {split} among {held}; add the file")
    return prefix, files


def read_images(path: Path) -> NDArray[Any]:
    """Read images, those of EMNIST turned upright: its files have rows and columns exchanged.

    Raises:
        DataError: As for `read`.
    """
    images = read(path)
    if is_transposed(path.name) and images.ndim == 3:  # noqa: PLR2004
        return images.transpose(0, 2, 1)
    return images


def is_transposed(name: str) -> bool:
    """Return whether a file's images have rows and columns exchanged, by its name."""
    return name.lower().startswith("emnist")


def read_labels(path: Path) -> NDArray[Any]:
    """Read labels; of QMNIST's eight columns the first, which is the class.

    Raises:
        DataError: As for `read`.
    """
    labels = read(path)
    extended = labels.ndim == 2 and labels.shape[1] == _QMNIST_COLUMNS  # noqa: PLR2004
    return labels[:, 0] if extended and path.name.lower().startswith("qmnist") else labels
