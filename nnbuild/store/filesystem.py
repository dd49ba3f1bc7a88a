"""Local files that are whole or not there: written aside, flushed to the disk, then moved."""

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
from nnbuild.store import presence
from nnbuild.store.ids import temporary_name

_LOCAL = ("file", "local")


def is_url(address: str) -> bool:
    """Whether a store's address names a protocol."""
    return "://" in address


def is_remote(path: Any) -> bool:
    """Whether a path leads away from the local file system."""
    return not isinstance(path, Path)


def open_root(url: str) -> Path:
    """The path behind a URL.

    Raises:
        ConfigError: the URL holds credentials.
        StoreError: the protocol is not known, or what it needs is not installed.
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
        # Listings are asked for anew each time: other machines write to the same store.
        path = UPath(url, use_listings_cache=False)
        _ = path.fs
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"store {url!r} cannot be opened ({error}); pip install 'nnbuild[s3]' for s3://, "
            "or the fsspec package of another protocol"
        ) from error
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
    """Where runs of the store behind a URL are made, on this machine: below `$NNBUILD_WORKSHOP`, or the cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    above = Path(os.environ.get("NNBUILD_WORKSHOP") or Path(cache) / "nnbuild" / "stores")
    return above / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def upload_folder(source: Path, target: Any) -> None:
    """Write every file of a folder as an object; what stands there already is overwritten by the same bytes.

    JSON comes last: it vouches for the files beside it.
    """
    files = (each for each in source.rglob("*") if each.is_file())
    for path in sorted(files, key=lambda each: (each.suffix == ".json", each)):
        target.fs.put_file(str(path), target.joinpath(*path.relative_to(source).parts).path)


def fetch_folder(source: Any, target: Path) -> None:
    """Copy the objects of a folder into an existing folder; the target appears once it is complete."""
    aside = target.with_name(temporary_name(target.name))
    aside.mkdir()
    try:
        for path in source.iterdir():
            source.fs.get_file(path.path, str(aside / path.name))
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was quicker
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


_MENDS = {
    errno.ENOSPC: "free some space, then resume the run",
    errno.EDQUOT: "raise the quota, then resume the run",
    errno.EROFS: "mount the store writable, or give another --store",
    errno.EACCES: "grant this user write access, or give another --store",
    errno.EPERM: "grant this user write access, or give another --store",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "bring the store back, or give another --store",
}


# What a remote store's client raises when the service does not answer or refuses: no OSError, alas.
_CLIENTS = ("botocore.", "aiobotocore.", "aiohttp.")


def as_store_error(what: str, error: Exception) -> StoreError:
    """An operating system's or a service's error as one that says what was tried and how to mend it."""
    place = getattr(error, "filename", None)
    if isinstance(place, str) and _is_temporary(place) and str(Path(place).parent) not in what:
        return StoreError(
            f"cannot {what}, for want of {place}: {getattr(error, 'strerror', None)}; mend it, or set $TMPDIR"
        )
    mend = _MENDS.get(getattr(error, "errno", None) or 0, "see `nnbuild doctor`")
    return StoreError(
        f"cannot {what}: {one_line(getattr(error, 'strerror', None) or error)}; {mend}"
    )


def _is_temporary(path: str) -> bool:
    """Whether a path is one of the temporary files that libraries write."""
    return Path(path).is_relative_to(tempfile.gettempdir())


@contextmanager
def os_errors_as_store_errors(what: str) -> Iterator[None]:
    """Turn an operating system's or a service's error into one that says what was tried and how to mend it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(_CLIENTS):
            raise as_store_error(what, error) from error
        raise


def fsync_dir(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Flush a file that some library wrote to the disk."""
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
    # After the search: a store that is there now is not among the missing, so it is never created.
    presence.require(folder)
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        fsync_dir(parent.parent)


def create_beside(path: Path) -> Path:
    """Create an empty file in the same folder, to be renamed to `path`; its mode follows the umask."""
    temporary = path.with_name(temporary_name(path.name))
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well and vanishes when it does not.

    The path keeps the file's ending, for the libraries that go by it.
    """
    with os_errors_as_store_errors(f"write {path}"):
        make_durable_dir(path.parent)
        aside = create_beside(path)
        try:
            yield aside
            fsync_file(aside)
            aside.replace(path)
            fsync_dir(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or a whole object of a remote store, or nothing."""
    if is_remote(path):
        with os_errors_as_store_errors(f"write {path}"):
            path.write_bytes(content)
        return
    with atomic_write(path) as aside:
        aside.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all; infinite numbers and NaN are refused."""
    write_bytes(path, json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path, *, most: int = 64 * 2**20) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        StoreError: it cannot be read, is larger, or is no JSON.
    """
    with os_errors_as_store_errors(f"read {path}"):
        if not is_remote(path) and not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"{path} is not a regular file; restore it from a copy")
        with path.open("rb") as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise StoreError(
            f"{path} is larger than {most} bytes, expected a small JSON file; restore it from a copy"
        )
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is no JSON ({error}); restore it from a copy") from error


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_dir(source: Path, target: Path, *, before: Callable[[], None] = lambda: None) -> bool:
    """Move a folder into a store: in one step, unless the target is there; object by object to a remote store.

    Args:
        source: a complete folder; its files are flushed before the move.
        target: where it shall stand.
        before: called between the flush and the move.

    Returns:
        Whether it was moved now. A target that stands already is left, and the source removed.
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
