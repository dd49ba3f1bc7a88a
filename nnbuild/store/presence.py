"""Notice that a store disappeared while work on it is in progress.

Writing a file creates its parent folders, so a run whose store was deleted, moved or unmounted
would create an empty store in its place. Work in a folder of `staging/` is therefore watched, and
writing below a watched store that was replaced is refused.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from nnbuild.errors import StoreGoneError

MARKER = "store.json"


class _Watch(NamedTuple):
    """A folder of `staging/` and its store, as they were when the work began.

    Attributes:
        folder: Folder of the work.
        root: Local folder with `staging/`.
        open_folder: Descriptor of `folder`.
        open_root: Descriptor of `root`.
        marked: Whether the root contained a marker.
    """

    folder: Path
    root: Path
    open_folder: int
    open_root: int
    marked: bool


# Shared by all threads of the process: the threads of a job write below the same store.
_watches: list[_Watch] = []


@contextmanager
def watch(folder: Path) -> Iterator[None]:
    """Watch a folder of `staging/` and its store for the duration of the block.

    Raises:
        StoreGoneError: The folder does not exist.
    """
    root = folder.parent.parent
    with ExitStack() as opened:
        # While a descriptor is open, the inode is not reused for another folder of the same name.
        entry = _Watch(
            folder,
            root,
            opened.enter_context(_descriptor(folder)),
            opened.enter_context(_descriptor(root)),
            marked=(root / MARKER).exists(),
        )
        _watches.append(entry)
        opened.callback(_watches.remove, entry)
        yield


@contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StoreGoneError(f"{folder} disappeared ({error.strerror}); bring it back") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def gone(path: Path) -> StoreGoneError | None:
    """Return the error to raise if `path` is below a watched store that disappeared, else None."""
    for entry in tuple(_watches):
        if not path.is_relative_to(entry.root):
            continue
        if not _is_at(entry.root, entry.open_root) or (
            entry.marked and not (entry.root / MARKER).exists()
        ):
            return StoreGoneError(
                f"the store {entry.root} disappeared during the run (deleted, moved or unmounted); "
                "bring it back, or give its new path as the store",
                setting="store",
            )
        if path.is_relative_to(entry.folder) and not _is_at(entry.folder, entry.open_folder):
            return StoreGoneError(f"{entry.folder} disappeared during the run; bring it back")
    return None


def require(path: Path) -> None:
    """Require that a path is not below a watched store that disappeared.

    Raises:
        StoreGoneError: The store or the watched folder was removed or replaced.
    """
    if (error := gone(path)) is not None:
        raise error


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
