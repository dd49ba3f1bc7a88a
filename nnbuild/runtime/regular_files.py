"""Read files by paths from users, which may lead to a pipe, a device or a folder."""

import os
import stat
from pathlib import Path

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
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        _require(status, most)  # it may have been replaced in the meantime
        # Python allocates what it is asked to read, and `most` may be above a limit on memory.
        size = min(most, max(status.st_size, _UNKNOWN_SIZE))
        content = file.read(size + 1)
    if len(content) > size:
        raise ValueError(f"has more than {size} bytes")
    return content


def _require(status: os.stat_result, most: int) -> None:
    if (kind := irregular(status.st_mode)) is not None:
        raise ValueError(f"is {kind}, not an ordinary file")
    if status.st_size > most:
        raise ValueError(f"has {status.st_size} bytes, more than {most}")
