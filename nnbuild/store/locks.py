"""Locks on runs, jobs and outputs; the kernel releases them when their holder dies."""

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from nnbuild.errors import LockedError
from nnbuild.store import presence
from nnbuild.store.filesystem import os_errors_as_store_errors

_LOCK_FILE = "lock"
# Testing a lock takes it for an instant, so a process that finds it taken tries again.
_TRIES = 4
_SECONDS_BETWEEN_TRIES = 0.02
_MAX_LOST_FOLDERS = 1000  # in a row; some file systems create no file in an existing folder
_KINDS = {"sweep-": "sweep", "score-": "scoring job"}


class Holder(NamedTuple):
    """The living process that holds a lock.

    Attributes:
        process: ID of the process and its host, for a message.
        record: Content of the lock file; empty if it cannot be read.
    """

    process: str
    record: dict[str, str]


def _holder(path: Path) -> Holder:
    try:
        content = json.loads(path.read_text())
        record = {str(name): str(value) for name, value in content.items()}
        return Holder(f"process {int(record['pid'])} on {record['host']}", record)
    except (OSError, ValueError, KeyError, AttributeError):
        return Holder("another process", {})


def _described(folder: Path) -> str:
    for prefix, kind in _KINDS.items():
        if folder.name.startswith(prefix):
            return f"{kind} {folder.name.removeprefix(prefix)}"
    return f"run {folder.name}"


def is_held(folder: Path) -> bool:
    """Return whether a living process works on the run in this staging folder."""
    try:
        with (folder / _LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the run in this staging folder, and watch that its store does not disappear.

    Raises:
        LockedError: A living process holds the lock; the message names its process ID and host. Or
            a process has ended the run a moment ago, and removed its folder.
    """
    path = folder / _LOCK_FILE
    with os_errors_as_store_errors(f"lock {path}"):
        try:
            file = path.open("a+b")
        except FileNotFoundError as error:
            if folder.parent.is_dir():
                raise _ended(folder) from error
            raise
    with file:
        if not _try_to_lock(file):
            raise LockedError(
                f"{_described(folder)} is held by {_holder(path).process}; wait for it, or stop "
                "it and resume again"
            )
        if not _is_at(path, file):  # its last holder has just removed it
            raise _ended(folder)
        file.truncate(0)
        file.write(json.dumps(_me()).encode())
        file.flush()
        with presence.watch(folder):
            yield


def _ended(folder: Path) -> LockedError:
    return LockedError(
        f"another process ended {_described(folder)} a moment ago; there is nothing left to do"
    )


def _try_to_lock(file: BinaryIO) -> bool:
    """Lock an open file, and return whether it succeeded; otherwise another process holds it."""
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(_SECONDS_BETWEEN_TRIES)
        else:
            return True
    return False


def holder(path: Path) -> Holder | None:
    """Return the living process that holds a lock file, as in `claim`; None if there is none."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(path)
    except OSError:
        return None
    return None


@contextmanager
def claim(
    path: Path, record: Mapping[str, str], refusal: Callable[[Holder], LockedError]
) -> Iterator[None]:
    """Lock a file for the duration of a block, and remove it afterwards.

    The kernel releases the lock when its holder dies, so a claim never outlives its process. The
    file that a killed process leaves behind is taken over by the next claim.

    Args:
        path: The lock file. Missing parent folders are created, and removed again if empty.
        record: Information about the holder for other processes; process and host are added.
        refusal: Returns the error to raise if a living process holds the lock.

    Raises:
        LockedError: A living process holds the lock.
        StoreError: The lock file cannot be written.
    """
    with os_errors_as_store_errors(f"lock {path}"):
        file, made = _locked_file(path)
    if file is None:
        raise refusal(_holder(path))
    with file:
        file.truncate(0)
        file.write(json.dumps(_me() | dict(record)).encode())
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
                for folder in made:
                    folder.rmdir()


def remove_if_free(path: Path) -> bool:
    """Remove a lock file that a killed process left behind, unless a living process holds it.

    It is removed while it is locked. A claim that has opened it in the meantime finds that its
    file is no longer at this path, and tries again.

    Returns:
        Whether it was removed.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _is_at(path, file):
            path.unlink()
            return True
    return False


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _locked_file(path: Path) -> tuple[BinaryIO | None, list[Path]]:
    """Open and lock a file.

    Returns:
        The file, or None if a living process holds the lock; and the folders created for it.
    """
    made: list[Path] = []
    lost = 0
    while True:
        missing = [each for each in path.parents if not each.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        made = missing or made
        try:
            file = _opened(path)
        except FileNotFoundError:  # the process that created the folder has removed it
            if (lost := lost + 1) == _MAX_LOST_FOLDERS:
                raise
            continue
        with ExitStack() as stack:
            stack.enter_context(file)
            if not _try_to_lock(file):
                return None, []
            if _is_at(path, file):  # otherwise its last holder has just removed it
                stack.pop_all()
                return file, made


def _opened(path: Path) -> BinaryIO:
    """Open a lock file, but never a symbolic link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return cast(BinaryIO, file)


def _me() -> dict[str, str]:
    return {"pid": str(os.getpid()), "host": socket.gethostname()}
