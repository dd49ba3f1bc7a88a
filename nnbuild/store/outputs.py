"""Write the output files and folders of a user, outside the store.

A regular file is replaced atomically and keeps its mode; a link remains a link. Other files are
never replaced: a device, a pipe or an open descriptor of this process receives the bytes, and
everything else is refused.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nnbuild.errors import OutputError
from nnbuild.store.filesystem import publish_dir, replaced
from nnbuild.store.ids import temporary_name

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "give a path whose links lead somewhere",
    errno.EPIPE: "its reader ended before everything was written",
}
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.ASCII)  # `Path` has made one slash of two
_DESCRIPTORS = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd")
_MOST_LINKS = 40  # the kernel's limit
_LONGEST_FILE_NAME = 64  # of a file that nnbuild writes into an output folder


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Replace an output file atomically; if the block raises, it is unchanged.

    Missing parent folders are created.

    Args:
        path: Path of the output file.

    Yields:
        A temporary path to write to, with the same ending.

    Raises:
        OutputError: The file cannot be written.
    """
    with _os_errors_as_output_errors(path):
        if (stream := _stream(path)) is not None:
            with stream, tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / path.name[-32:]
                yield temporary
                with temporary.open("rb") as content:
                    shutil.copyfileobj(content, stream)
            return
        target, before = _target(path)
        with replaced(target) as temporary:
            yield temporary
            if before is not None:
                _keep_owner_and_mode(temporary, before)


def write_output(path: Path, content: bytes) -> None:
    """Write an output file; see `output_file`."""
    with output_file(path) as temporary:
        temporary.write_bytes(content)


def require_new(path: Path) -> None:
    """Require that nothing exists at a path.

    Raises:
        OutputError: Something exists there, or the path cannot be accessed.
    """
    with _os_errors_as_output_errors(path):
        if _stat(path) is not None:
            raise OutputError(f"{path} exists already; give a new path")


def require_new_folder(path: Path) -> None:
    """Require that a folder is empty or can be created, and can be written to.

    Raises:
        OutputError: It is not empty, cannot be created, or is not writable.
    """
    with _os_errors_as_output_errors(path):
        status = _stat(path)
        if status is not None and (not stat.S_ISDIR(status.st_mode) or any(path.iterdir())):
            raise OutputError(f"{path} is not empty; give a new folder")
        target = _target_of_link(path)
        nearest = next(each for each in (target, *target.parents) if each.exists())
        _require_short_names(nearest, target)
        if not os.access(nearest, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def _require_short_names(nearest: Path, folder: Path) -> None:
    """Raise the system's error if the path of a file in a folder would be too long.

    The system does not check names below a missing folder, so each name is checked separately.
    """
    for name in folder.relative_to(nearest).parts:
        _stat(nearest / name)
    _stat(folder / ("x" * _LONGEST_FILE_NAME))


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Create an output folder atomically; if the block raises, it does not appear.

    Args:
        path: Path of the new folder.

    Yields:
        An empty temporary folder to fill.

    Raises:
        OutputError: The folder exists, or cannot be written.
    """
    require_new(path)
    with _os_errors_as_output_errors(path):
        target = _new_target(path)
        temporary = target.with_name(temporary_name(target.name))
        temporary.mkdir()
        try:
            yield temporary
            if not publish_dir(temporary, target):
                raise OutputError(f"{path} exists already; give a new path")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def is_stdout(path: Path) -> bool:
    """Return whether a path leads to this process's standard output, such as `/dev/stdout`."""
    return _descriptor(path) == (os.getpid(), 1)


def _stream(path: Path) -> BinaryIO | None:
    """Open a device, pipe or descriptor; return None for a regular file or a free path.

    Raises:
        OutputError: The path leads to something that cannot be written to.
    """
    if (found := _descriptor(path)) is not None:
        return _descriptor_stream(path, *found)
    status = _stat(path)
    if status is None or stat.S_ISREG(status.st_mode):
        return None
    if stat.S_ISCHR(status.st_mode):
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb")
    if stat.S_ISFIFO(status.st_mode):
        # Without O_NONBLOCK this could wait for a reader forever.
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise OutputError(f"nothing reads from pipe {path}; start its reader first") from error
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "wb")
    raise _refusal(path, status)


def _descriptor_stream(path: Path, process: int, number: int) -> BinaryIO:
    if process != os.getpid():
        raise OutputError(
            f"{path} is open in process {process}, expected a file; give another path"
        )
    status = os.fstat(number)
    if stat.S_ISBLK(status.st_mode) or stat.S_ISDIR(status.st_mode):
        raise _refusal(path, status)
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OutputError(f"{path} is open for reading only; give a path that can be written")
    # Duplicated, not opened again: a new descriptor would write from the start of the file.
    return os.fdopen(os.dup(number), "wb")


def _refusal(path: Path, status: os.stat_result) -> OutputError:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFBLK: "a block device", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "not a regular file")
    return OutputError(f"{path} is {kind}, expected a file; give another path")


def _descriptor(path: Path) -> tuple[int, int] | None:
    """Return the process and number of the descriptor that a path such as `/dev/fd/3` names."""
    for _ in range(_MOST_LINKS):
        # Unlike `Path.resolve`, it accepts a link to itself.
        folder = Path(os.path.realpath(path.parent))
        if (found := _DESCRIPTORS.fullmatch(str(folder))) and path.name.isdigit():
            return int(found[1]), int(path.name)
        here = folder / path.name
        if not here.is_symlink():
            return None
        path = folder / here.readlink()  # which may be absolute
    return None


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """Return the regular file to replace and its status; None if it does not exist yet."""
    status = _stat(path)
    if status is None:
        return _new_target(path), None
    target = Path(os.path.realpath(path))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return target, status


def _new_target(path: Path) -> Path:
    target = _target_of_link(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _target_of_link(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    if path.is_symlink() and not target.parent.is_dir():
        raise OutputError(f"{path} is a link into {target.parent}, which does not exist; create it")
    return target


def _keep_owner_and_mode(temporary: Path, before: os.stat_result) -> None:
    with suppress(PermissionError):  # only root may give files away
        os.chown(temporary, before.st_uid, before.st_gid)
    temporary.chmod(stat.S_IMODE(before.st_mode) & 0o777)  # no set-user-ID bit for new content


def _stat(path: Path) -> os.stat_result | None:
    """Return the status of the file at a path, following links; None if there is none."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextmanager
def _os_errors_as_output_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into OutputErrors with a remedy."""
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} contains a NUL character, expected the path of a file")
    if _URL.match(str(path)):
        raise OutputError(f"{path} is a URL, expected a path on this machine")
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "give a path that can be written")
        reason = error.strerror or " ".join(str(error).split())
        raise OutputError(f"cannot write {path}: {reason}; {remedy}") from error
