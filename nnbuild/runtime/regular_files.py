"""Read files by paths from users, which may lead to a pipe, a device or a folder."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_UNKNOWN_SIZE = 1 << 20  # of files that claim to be empty, such as those of /proc


def irregular(mode: int) -> str | None:
    """Return the kind of a file by its `st_mode`; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a special file")


def open_checked(
    path: Path | str, require: Callable[[os.stat_result], object], buffering: int = -1
) -> IO[bytes]:
    """Open a file that was checked before; it may have been replaced in the meantime.

    Args:
        path: Path of the file; links are followed.
        require: Check of the status of the file, which raises an error.
        buffering: As for `open`.

    Raises:
        OSError: The file is missing or cannot be read.
        Exception: The check failed.
    """
    # Without O_NONBLOCK, opening a pipe would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb", buffering)
    try:
        require(os.fstat(descriptor))
    except Exception:
        file.close()
        raise
    return file


def read_regular(path: Path, most: int) -> bytes:
    """Read a file without ever waiting for a pipe or a device; links are followed.

    Args:
        path: Path of the file.
        most: Largest size in bytes.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: The file is not a regular file, or is too large; the message is a predicate,
            such as `is a folder, not an ordinary file`.
    """
    _require(path.stat(), most)  # before opening it, since that can start a device
    with open_checked(path, lambda status: _require(status, most)) as file:
        # Python allocates what it is asked to read, and `most` may be above a limit on memory.
        size = min(most, max(os.fstat(file.fileno()).st_size, _UNKNOWN_SIZE))
        content = file.read(size + 1)
    if len(content) > size:
        raise ValueError(f"has more than {size} bytes")
    return content


def _require(status: os.stat_result, most: int) -> None:
    if (kind := irregular(status.st_mode)) is not None:
        raise ValueError(f"is {kind}, not an ordinary file")
    if status.st_size > most:
        raise ValueError(f"has {status.st_size} bytes, more than {most}")
