"""Who works on a run. The kernel keeps the lock, so it ends with its holder, however that one dies."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnbuild.errors import LockedError
from nnbuild.store import presence
from nnbuild.store.files import explained

_HELD = "lock"


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {int(holder['pid'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _named(folder: Path) -> str:
    return (
        folder.name.replace("sweep-", "sweep ", 1)
        if folder.name.startswith("sweep-")
        else f"run {folder.name}"
    )


def is_held(folder: Path) -> bool:
    """Whether a living process works on the run in this staging folder."""
    try:
        with (folder / _HELD).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the run in this staging folder, and watch that its store does not disappear.

    Raises:
        LockedError: a living process holds it; the message names its pid and host.
    """
    path = folder / _HELD
    with explained(f"lock {path}"):
        file = path.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(
                f"{_named(folder)} is held by {_holder(path)}; wait for it, or stop it and resume again"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        file.flush()
        with presence.watched(folder):
            yield
