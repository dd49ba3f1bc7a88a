"""A store behind a URL: readers look there, runs are made in a folder of this machine.

The paths of such a store are universal_pathlib's, which have the methods of `pathlib.Path`; an object becomes
visible whole or not at all.
"""

import hashlib
import os
import posixpath
import shutil
from pathlib import Path
from typing import Any, cast

from nnbuild.errors import StoreError
from nnbuild.runtime.credentials import require_no_credentials
from nnbuild.store.names import temporary_name

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


def workshop(url: str) -> Path:
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
