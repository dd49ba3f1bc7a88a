"""Atomic, durable file access of a store: write a temporary file, flush it, then rename it."""

import errno
import hashlib
import json
import os
import posixpath
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from nnbuild.errors import StoreError, one_line
from nnbuild.runtime.credentials import require_no_credentials
from nnbuild.runtime.environment import cache_folder
from nnbuild.store import presence
from nnbuild.store.ids import temporary_name

_CHUNK = 1 << 20
_LOCAL = ("file", "local")


def is_url(address: str) -> bool:
    """Return whether an address is a URL."""
    return "://" in address


def absolute_address(address: str) -> str:
    """Return an address that is valid in any working folder: a path is made absolute."""
    return address if is_url(address) else str(Path(address).absolute())


def is_remote(path: Any) -> bool:
    """Return whether a path is not on the local file system."""
    return not isinstance(path, Path)


def open_root(url: str) -> Path:
    """Return the path that a URL leads to.

    Raises:
        ConfigError: The URL contains credentials.
        StoreError: The protocol is unknown, or the package that it needs is not installed.
    """
    require_no_credentials(url, "the address of the store, an input or an output")
    protocol, _, place = url.partition("://")
    if protocol not in _LOCAL and not place.strip("/"):
        raise StoreError(
            f"{url!r} names no bucket or host; expected a URL such as s3://bucket/folder"
        )
    try:
        from upath import UPath

        if protocol in _LOCAL:
            return Path(UPath(url).path)
        # No cached listings: other machines write to the same store.
        path = UPath(url, use_listings_cache=False)
        _ = path.fs
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"store {url!r} cannot be opened ({error}); pip install 'nnbuild[s3]' for s3://, "
            "or the fsspec package of another protocol"
        ) from error
    except OSError as error:  # some protocols connect at once
        raise as_store_error(f"open {url}", error) from error
    return cast("Path", path)


def overlap(path: Any, root: Any) -> bool:
    """Return whether one of two remote paths is the other, or in it, with `..` resolved or not."""
    if type(path.fs) is not type(root.fs):
        return False
    places = {path.path.strip("/"), posixpath.normpath(path.path).strip("/")}
    other = root.path.strip("/")
    return any(
        f"{each}/".startswith(f"{other}/") or f"{other}/".startswith(f"{each}/") for each in places
    )


def local_root(url: str) -> Path:
    """Return the local folder for the runs in progress of a remote store.

    It is below `$NNBUILD_STAGING_DIR`, or below the user's cache folder if that is not set.
    """
    parent = Path(os.environ.get("NNBUILD_STAGING_DIR") or cache_folder() / "stores")
    return parent / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def upload_folder(source: Path, target: Any) -> None:
    """Upload every file of a folder as an object, replacing existing objects.

    JSON files come last, since they contain the digests of the other files.
    """
    files = (each for each in source.rglob("*") if each.is_file())
    for path in sorted(files, key=lambda each: (each.suffix == ".json", each)):
        target.fs.put_file(str(path), target.joinpath(*path.relative_to(source).parts).path)


def fetch_folder(source: Any, target: Path) -> None:
    """Copy the objects of a folder to a local folder, which appears once it is complete."""
    temporary = target.with_name(temporary_name(target.name))
    temporary.mkdir()
    try:
        for path in source.iterdir():
            source.fs.get_file(path.path, str(temporary / path.name))
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was quicker
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_REMEDIES = {
    errno.ENOSPC: "free some space, then resume the run",
    errno.EDQUOT: "raise the quota, then resume the run",
    errno.EROFS: "mount the store writable, or give another store",
    errno.EACCES: "grant this user write access, or give another store",
    errno.EPERM: "grant this user write access, or give another store",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "bring the store back, or give another store",
}


# Clients of remote stores raise these, not an OSError, if the service does not answer or refuses.
_CLIENTS = ("botocore.", "aiobotocore.", "aiohttp.")


def as_store_error(what: str, error: Exception) -> StoreError:
    """Return a StoreError for an error of the operating system or a remote service.

    Args:
        what: The failed operation, such as `read PATH`.
        error: The error.
    """
    place = getattr(error, "filename", None)
    if isinstance(place, str) and _is_temporary(place) and str(Path(place).parent) not in what:
        return StoreError(
            f"cannot {what}: temporary file {place}: {getattr(error, 'strerror', None)}; "
            "make room there, or set $TMPDIR"
        )
    remedy = _REMEDIES.get(getattr(error, "errno", None) or 0, "see `nnbuild doctor`")
    reason = one_line(getattr(error, "strerror", None) or error)
    return StoreError(f"cannot {what}: {reason}; {remedy}")


def is_of_service(error: BaseException) -> bool:
    """Return whether the client of a remote service has raised an error."""
    return type(error).__module__.startswith(_CLIENTS)


def _is_temporary(path: str) -> bool:
    """Return whether a path is in the folder of temporary files."""
    return Path(path).is_relative_to(tempfile.gettempdir())


@contextmanager
def os_errors_as_store_errors(what: str) -> Iterator[None]:
    """Turn errors of the operating system and of remote services into StoreErrors.

    Args:
        what: The operation of the block, for the message, such as `read PATH`.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or is_of_service(error):
            raise as_store_error(what, error) from error
        raise


def fsync_dir(folder: Path) -> None:
    """Flush the entries of a folder to the disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Flush a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_durable_dir(folder: Path) -> None:
    """Create a folder and its missing parents, and flush each to the disk.

    Raises:
        StoreGoneError: The folder is below a store that disappeared during the work on it.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    # After the search, so that a store that disappears in the meantime is not created again.
    presence.require(folder)
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        fsync_dir(parent.parent)


def create_beside(path: Path) -> Path:
    """Create an empty file to be renamed to `path`, with the mode that the umask gives."""
    temporary = path.with_name(temporary_name(path.name))
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace a file atomically; if the block raises, the file is unchanged.

    Yields:
        A temporary path to write to, with the same ending as `path`.
    """
    with os_errors_as_store_errors(f"write {path}"):
        make_durable_dir(path.parent)
        with replaced(path) as temporary:
            yield temporary


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Replace a file atomically; the errors are those of the operating system."""
    temporary = create_beside(path)
    try:
        yield temporary
        fsync_file(temporary)
        temporary.replace(path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, or an object of a remote store, atomically."""
    if is_remote(path):
        with os_errors_as_store_errors(f"write {path}"):
            path.write_bytes(content)
        return
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON atomically.

    Raises:
        ValueError: The value contains NaN or an infinite number.
    """
    write_bytes(path, json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path, *, most: int = 64 * 2**20) -> Any:
    """Read a JSON file.

    Args:
        path: Path of the file.
        most: Largest size in bytes.

    Raises:
        StoreError: The file cannot be read, is too large, or is not valid JSON.
    """
    with os_errors_as_store_errors(f"read {path}"):
        if not is_remote(path) and not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"{path} is not a regular file; restore it from a copy")
        content = bytearray()
        with path.open("rb") as file:
            # In chunks, because Python allocates what it is asked to read.
            while len(content) <= most and (chunk := file.read(_CHUNK)):
                content += chunk
    if len(content) > most:
        raise StoreError(
            f"{path} has more than {most} bytes, expected a small JSON file; restore it from a copy"
        )
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not valid JSON ({error}); restore it from a copy") from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_dir(source: Path, target: Path, *, before: Callable[[], None] = lambda: None) -> bool:
    """Move a folder into a store: atomically, or object by object if the store is remote.

    Args:
        source: Complete folder; its files are flushed before the move.
        target: New path of the folder.
        before: Called between the flush and the move.

    Returns:
        Whether the folder was moved. If the target exists, the source is removed instead.
    """
    with os_errors_as_store_errors(f"move {source} to {target}"):
        if is_remote(target):
            before()
            upload_folder(source, target)
            shutil.rmtree(source, ignore_errors=True)
            return True
        if target.exists():
            shutil.rmtree(source, ignore_errors=True)
            return False
        for path in source.rglob("*"):
            (fsync_dir if path.is_dir() else fsync_file)(path)
        fsync_dir(source)
        make_durable_dir(target.parent)
        before()
        source.rename(target)
        fsync_dir(target.parent)
        return True
