"""List the data files of a folder, by the same rules for training, scoring, local folders and URLs.

- Names that begin with `.` or `_`, and the metadata files of desktops, are ignored at any depth. A
  file or folder that is named explicitly is never ignored.
- Links to files and folders are followed; a link to a folder above it is not entered again, and a
  broken link is an error.
- A pipe, a socket or a device is an error, because reading it can block.
- Files are ordered by their POSIX path relative to the folder, as text.
"""

import errno
import fnmatch
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import compress, islice
from operator import not_
from pathlib import Path, PurePosixPath
from typing import Any, overload

from nnbuild.data import archives
from nnbuild.errors import DataError, StoreError
from nnbuild.runtime.regular_files import irregular
from nnbuild.store.filesystem import as_store_error, is_url, open_root

_DESKTOP_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
)
_SHARD = re.compile(r"^(?P<before>.*)-(?P<number>\d{5,9})-of-(?P<count>\d{5,9})(?P<after>.*)$")
_MAX_NAMED = 3


class File:
    """A file of a folder.

    Args:
        path: Local path, or a path of universal_pathlib; or the path of the folder as a text, to
            which the name is appended, because it takes long to make a million paths.
        name: POSIX path relative to the folder: `day=1/part-0.parquet`.

    Attributes:
        folder: The folder and a slash as text; None if the file was made from its path.
        name: As given.
    """

    __slots__ = ("_path", "folder", "name")

    def __init__(self, path: Any, name: str) -> None:
        self.folder = path if isinstance(path, str) else None
        self._path, self.name = None if isinstance(path, str) else path, name

    def __str__(self) -> str:
        return str(self._path) if self.folder is None else self.folder + self.name

    @property
    def path(self) -> Any:
        """Return the local path, or the path of universal_pathlib."""
        if self.folder is None:
            return self._path
        return open_root(str(self)) if is_url(self.folder) else Path(str(self))

    @property
    def is_local(self) -> bool:
        """Return whether the file is on this machine."""
        return is_local(self._path) if self.folder is None else not is_url(self.folder)


class FolderFiles(Sequence[File]):
    """Files of a folder, of which only the names are kept: a million objects take a second.

    Args:
        folder: Path of the folder, and a slash.
        names: POSIX paths relative to it, in order.

    Attributes:
        folder: As given.
        names: As given.
    """

    def __init__(self, folder: str, names: list[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> File: ...
    @overload
    def __getitem__(self, place: slice) -> "FolderFiles": ...
    def __getitem__(self, place: int | slice) -> "File | FolderFiles":
        if isinstance(place, slice):
            return FolderFiles(self.folder, self.names[place])
        return File(self.folder, self.names[place])

    @cached_property
    def suffixes(self) -> frozenset[str]:
        """Return the suffixes of the names; see `suffixes_of`."""
        return _suffixes(self.names)


def names_of(files: Sequence[File]) -> list[str]:
    """Return the names of files."""
    return files.names if isinstance(files, FolderFiles) else [file.name for file in files]


def suffixes_of(files: Sequence[File]) -> frozenset[str]:
    """Return the suffixes of files, in lower case; the whole of a name that has none."""
    return files.suffixes if isinstance(files, FolderFiles) else _suffixes(names_of(files))


def _suffixes(names: Iterable[str]) -> frozenset[str]:
    endings = {name.rpartition(".")[2] for name in names}
    return frozenset(f".{each.lower()}" for each in endings)


def files_as_json(files: Sequence[File]) -> dict[str, Any]:
    """Return files in JSON, for `files_from_json`."""
    if isinstance(files, FolderFiles):
        return {"folders": [files.folder], "names": files.names}
    folders = [str(file).removesuffix(file.name) for file in files]
    same = folders[:1] if len(set(folders)) == 1 else folders
    return {"folders": same, "names": names_of(files)}


def files_from_json(content: dict[str, Any]) -> Sequence[File]:
    """Return the files of `files_as_json`, without a look at any of them."""
    names, folders = content["names"], content["folders"]
    if len(folders) == 1:
        return FolderFiles(folders[0], names)
    return list(map(File, folders, names))


def is_ignored(name: str) -> bool:
    """Return whether files and folders with this name are ignored."""
    return name.startswith((".", "_")) or name.lower() in _DESKTOP_FILES


def is_local(path: Any) -> bool:
    """Return whether a path is on this machine."""
    return isinstance(path, Path)


def outage_of(file: File, error: Exception) -> StoreError | None:
    """Return the error to raise if a listed file cannot be read because of the machine.

    Args:
        file: The file.
        error: What reading it raised.

    Returns:
        None if the file itself is damaged, not accessible or deleted.
    """
    if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError):
        return _unreachable(file)
    return archives.outage(error, file)


def _unreachable(file: File) -> StoreError | None:
    """Return the error to raise if a file is missing with its disk or server.

    Returns:
        None if it was deleted: the folder that was listed is there, or its server says so.
    """
    path: Any = file.path
    if not is_local(path):
        try:
            path.fs.invalidate_cache()
            path.fs.info(path.path)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001  (each client has errors of its own)
            return as_store_error(f"read {file}", error)
        return StoreError(f"cannot read {file}: its server did not answer for a moment")
    root = path.parents[len(PurePosixPath(file.name).parts) - 1]
    with suppress(OSError), os.scandir(root) as entries:
        if next(entries, None) is not None:
            return None
    # Where nothing is mounted, the folder is empty.
    return StoreError(f"{root}: missing or empty since it was listed; bring the disk back")


def path_exists(path: Path | str) -> bool:
    """Return whether a path exists; False for invalid names."""
    with suppress(OSError, ValueError):  # a name can be too long, or contain a NUL character
        return Path(path).exists()
    return False


def files_below(folder: Any) -> Sequence[File]:
    """List the files of a folder and its subfolders, in order.

    Args:
        folder: Local folder, or a folder of universal_pathlib.

    Raises:
        DataError: A folder cannot be listed, a link is broken, or an entry is a pipe, a socket or a
            device.
    """
    if is_local(folder):
        return FolderFiles(str(folder / "_")[:-1], sorted(_names_below(folder)))
    return sorted(_remote_files(folder), key=lambda file: file.name)


def fingerprint(path: Any) -> str | None:
    """Return a digest of the files at a path that changes when they do, without reading them.

    It consists of the name, size and times of each file, and of its inode or its ETag. If a file is
    replaced by one of the same size and modification time, its ctime still differs.

    Args:
        path: Local file or folder, or a path of universal_pathlib.

    Returns:
        SHA-256, as 64 hexadecimal digits; None if there are no files.

    Raises:
        DataError: See `files_below`.
    """
    files = files_below(path) if path.is_dir() else [File(path, path.name)]
    states = [(file.name, *_state(file.path)) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest() if states else None


def _state(path: Any) -> tuple[object, ...]:
    if is_local(path):
        with archives.read_errors_as_data_errors(path):
            status = path.stat()
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    about = path.fs.info(path.path)
    times = ("ETag", "etag", "LastModified", "mtime", "created")
    return about["size"], *(str(about.get(name, "")) for name in times)


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, in order, except ignored ones.

    Raises:
        DataError: See `files_below`.
    """
    with archives.read_errors_as_data_errors(folder), os.scandir(folder) as entries:
        visible = sorted(entry.name for entry in entries if not is_ignored(entry.name))
    return [name for name in visible if _is_folder(folder / name)]


def _names_below(folder: Path) -> list[str]:
    names: list[str] = []
    waiting: list[tuple[Path, str, tuple[Any, ...]]] = [(folder, "", (_identity(folder),))]
    while waiting:
        current, above, entered = waiting.pop()
        with archives.read_errors_as_data_errors(current), os.scandir(current) as listing:
            entries = [entry for entry in listing if not is_ignored(entry.name)]
        is_file = [entry.is_file(follow_symlinks=False) for entry in entries]
        names += [above + entry.name for entry in compress(entries, is_file)]
        for entry in compress(entries, map(not_, is_file)):
            path = current / entry.name
            if not _is_folder(path):
                names.append(above + entry.name)
            elif (identity := _identity(path)) not in entered:
                waiting.append((path, f"{above}{entry.name}/", (*entered, identity)))
    return names


def _is_folder(path: Path) -> bool:
    """Return whether an entry is a folder; refuse anything that is not a regular file either."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP} and path.is_symlink():
            raise DataError(f"{path}: a broken link; remove it, or restore its target") from error
        with archives.read_errors_as_data_errors(path):
            raise
    kind = irregular(mode)
    if kind not in {None, "a folder"}:
        raise DataError(f"{path}: {kind}, not an ordinary file; remove it from the folder")
    return kind is not None


def _identity(folder: Path) -> tuple[int, int]:
    with archives.read_errors_as_data_errors(folder):
        status = folder.stat()
    return status.st_dev, status.st_ino


def _remote_files(folder: Any) -> Iterator[File]:
    base = folder.path.rstrip("/") + "/"
    for path in folder.fs.find(folder.path):
        name = path.removeprefix(base)
        parts = name.split("/")
        if path.startswith(base) and all(part and not is_ignored(part) for part in parts):
            yield File(folder.joinpath(*parts), name)


def has_wildcard(address: str) -> bool:
    """Return whether an address is a glob pattern and not an existing path."""
    return glob.has_magic(address) and not path_exists(address)


def matches(folder: Any, pattern: str) -> list[Any]:
    """List the matches of a glob pattern below a folder, in order.

    A wildcard does not match ignored names, unless the pattern begins with the same `.` or `_`.

    Args:
        folder: Local folder, or a folder of universal_pathlib.
        pattern: POSIX path with `*`, `?`, `[…]` and `**` for folders at any depth.

    Raises:
        DataError: A folder cannot be listed.
    """
    parts = [part for part in pattern.split("/") if part not in {"", "."}]
    return sorted(set(_expanded(folder, parts)), key=str)


def _expanded(folder: Any, parts: list[str]) -> Iterator[Any]:
    if not parts:
        yield folder
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        yield from _expanded(folder, rest or ["*"])
        for below in _folders_below(folder):
            yield from _expanded(below, rest or ["*"])
    elif glob.has_magic(first):
        for name in _listed(folder):
            hidden = is_ignored(name) and name[:1] != first[:1]
            if not hidden and fnmatch.fnmatchcase(name, first):
                yield from _expanded(folder / name, rest)
    elif _exists(folder / first):
        yield from _expanded(folder / first, rest)


def _exists(path: Any) -> bool:
    return path_exists(path) if is_local(path) else bool(path.exists())


def _folders_below(folder: Any) -> Iterator[Any]:
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(folder, ())]
    while waiting:
        current, entered = waiting.pop()
        for name in _listed(current):
            below = current / name
            if is_ignored(name) or not below.is_dir():
                continue
            identity = _identity(below) if is_local(below) else str(below)
            if identity not in entered:
                yield below
                waiting.append((below, (*entered, identity)))


def _listed(folder: Any) -> list[str]:
    if not folder.is_dir():
        return []
    with archives.read_errors_as_data_errors(folder):
        return sorted(entry.name for entry in folder.iterdir() if entry.name)


def require_all_shards(names: Iterable[str], where: object) -> None:
    """Refuse files that lack a numbered shard, such as `train-00001-of-00003.parquet`.

    Args:
        names: POSIX paths of the files.
        where: Path or address for error messages.

    Raises:
        DataError: Shards are missing, or their names have different numbers of shards.
    """
    sets: dict[tuple[str, str], dict[str, set[int]]] = {}
    for name in names:
        if match := _SHARD.match(name):
            shards = sets.setdefault((match["before"], match["after"]), {})
            shards.setdefault(match["count"], set()).add(int(match["number"]))
    for (before, after), counts in sets.items():
        if len(counts) > 1:
            totals = " and of ".join(sorted(counts))
            raise DataError(
                f"{where}: {before} has shards of {totals}{after}; remove the older ones"
            )
        ((count, numbers),) = counts.items()
        first = 1 if 0 not in numbers and int(count) in numbers else 0
        absent = (each for each in range(first, first + int(count)) if each not in numbers)
        shown = [
            f"{before}-{number:0{len(count)}}-of-{count}{after}"
            for number in islice(absent, _MAX_NAMED)
        ]
        if shown:
            others = int(count) - len(numbers) - len(shown)
            more = f" and {others} more" if others > 0 else ""
            raise DataError(f"{where}: missing {', '.join(shown)}{more}; add these shards")
