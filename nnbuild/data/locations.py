"""Find the files at a path, a glob or a URL, before their format is known."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nnbuild.data import archives, file_tree
from nnbuild.data.file_tree import File
from nnbuild.store.filesystem import is_url, open_root, os_errors_as_store_errors

_HEAD = 4  # bytes


@dataclass(frozen=True)
class Location:
    """Files at a path, a glob or a URL.

    Attributes:
        address: Address as the user wrote it.
        kind: Whether it is one file, a folder, or a glob.
        files: The file itself, the files below the folder, or the files that the glob matches and
            those below the folders that it matches; in the order of their paths. Their names are
            relative to the folder, or to the last folder before the first wildcard.
    """

    address: str
    kind: Literal["file", "folder", "glob"]
    files: Sequence[File]

    @property
    def path(self) -> Path:
        """Return the local path of a file or a folder."""
        return Path(self.address)

    @property
    def is_local(self) -> bool:
        """Return whether the files are on this machine."""
        return not is_url(self.address)

    @property
    def names(self) -> list[str]:
        """Return the names of the files."""
        return file_tree.names_of(self.files)

    @property
    def suffixes(self) -> frozenset[str]:
        """Return the suffixes of the files; see `nnbuild.data.file_tree.suffixes_of`."""
        return file_tree.suffixes_of(self.files)

    @cached_property
    def head(self) -> bytes:
        """Return the first bytes of a file.

        Raises:
            DataError: It is a pipe, a socket or a device, or cannot be read.
        """
        return first_bytes(self.files[0].path)

    @property
    def top_names(self) -> list[str]:
        """Return the names of the files directly in a folder."""
        return [name for name in self.names if "/" not in name]


def first_bytes(path: Any) -> bytes:
    """Return the first four bytes of a local or remote file.

    Raises:
        DataError: It is a pipe, a socket or a device, or cannot be read.
    """
    if file_tree.is_local(path):
        return archives.first_bytes(path, _HEAD)
    content: bytes = path.fs.cat_file(path.path, start=0, end=_HEAD)
    return content


def locate(address: str) -> Location | None:
    """Find the files at an address.

    Args:
        address: A file, a folder, a glob, or a URL of either. `nnbuild.data.file_tree` says which
            files of a folder are ignored.

    Returns:
        The files; None if there is nothing at the address.

    Raises:
        DataError: A folder contains a pipe, a socket, a device or a broken link.
        StoreError: The server of a URL does not answer, or refuses access.
    """
    if is_url(address):
        with os_errors_as_store_errors(f"list {address}"):
            return _locate_url(address)
    if file_tree.has_wildcard(address):
        anchor = Path(Path(address).anchor)
        return _matches(address, anchor, Path(address).relative_to(anchor).as_posix())
    if not file_tree.path_exists(address):
        return None
    return location_at(Path(address))


def _locate_url(address: str) -> Location | None:
    stem, star, pattern = address.partition("*")
    if not star:
        root = open_root(address)
        return location_at(root, address) if root.is_dir() or root.is_file() else None
    above, _, beginning = stem.rpartition("/")
    return _matches(address, open_root(above), beginning + star + pattern)


def location_at(path: Any, address: str | None = None) -> Location:
    """Return the location of an existing file or folder.

    Args:
        path: Local path, or a path of universal_pathlib.
        address: Address as the user wrote it; the path if not given.

    Raises:
        DataError: See `locate`.
    """
    address = str(path) if address is None else address
    if path.is_dir():
        return Location(address, "folder", file_tree.files_below(path))
    return Location(address, "file", (File(path, path.name),))


def _matches(address: str, root: Any, pattern: str) -> Location:
    """Return the files that a glob matches below a folder, each once."""
    fixed = [part for part in pattern.split("/") if part not in {"", "."}]
    first = next(place for place, part in enumerate(fixed) if glob.has_magic(part))
    base = root.joinpath(*fixed[:first])
    matched: dict[str, File] = {}
    for path in file_tree.matches(root, pattern):
        name = path.relative_to(base).as_posix() if file_tree.is_local(path) else path.name
        below = file_tree.files_below(path) if path.is_dir() else [File(path, "")]
        for file in below:
            full = "/".join(filter(None, (name, file.name)))
            matched[str(file.path)] = File(file.path, full)
    return Location(address, "glob", tuple(matched[key] for key in sorted(matched)))
