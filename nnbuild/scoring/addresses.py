"""Find the Parquet files at the address of an input: a file, a folder, a glob or a URL."""

from pathlib import Path
from typing import Any

from nnbuild.data import archives, file_tree
from nnbuild.data.file_tree import File
from nnbuild.data.parquet import has_ending, is_parquet, parquet_below, starts_as_parquet
from nnbuild.errors import DataError
from nnbuild.store.filesystem import is_remote, is_url, open_root, os_errors_as_store_errors

_SHARDS = "-of-"


def parquet_files(address: str) -> list[Any]:
    """Return the Parquet files at an address in order; none if it leads to something else.

    Args:
        address: A file, a folder with Parquet files below it, a glob of these, or a URL of one.
            `nnbuild.data.file_tree` says which files of a folder are ignored.

    Raises:
        DataError: A URL without Parquet files, a missing shard, or a special file in a folder.
    """
    paths = _files_at(address)
    if not paths and is_url(address):
        raise DataError(
            f"{address}: found no Parquet files; expected a file, a folder or a glob of them"
        )
    return paths


def is_there(address: str) -> bool:
    """Return whether an address leads to anything; whether it can be scored is checked later."""
    try:
        path = Path(address)
        if is_url(address) or not file_tree.path_exists(path):
            return bool(_files_at(address))
        return not path.is_dir() or bool(file_tree.files_below(path))
    except DataError:
        return True  # there is something, although it cannot be read


def _files_at(address: str) -> list[Any]:
    if is_url(address):
        stem, star, pattern = address.partition("*")
        above, _, beginning = stem.rpartition("/") if star else (address, "", "")
        with os_errors_as_store_errors(f"list {address}"):
            root = open_root(above)
            return _matching(root, beginning + star + pattern) if star else _at(root)
    if file_tree.has_wildcard(address):
        anchor = Path(Path(address).anchor)
        return _matching(anchor, Path(address).relative_to(anchor).as_posix())
    return _at(Path(address))


def _matching(root: Any, pattern: str) -> list[Any]:
    """Return the Parquet files that a glob matches, and those below the folders it matches."""
    matched: dict[str, Any] = {}
    for each in file_tree.matches(root, pattern):
        files = parquet_below(each) if each.is_dir() else [File(each, each.name)]
        matched |= {str(file.path): file.path for file in files if is_parquet(file)}
    if _SHARDS not in pattern.rpartition("/")[2]:  # a pattern that names shards may select some
        file_tree.require_all_shards(matched, pattern)
    return [matched[name] for name in sorted(matched)]


def _at(path: Any) -> list[Any]:
    if is_remote(path):
        if path.is_dir():
            return [file.path for file in parquet_below(path)]
        return [path] if path.is_file() and _is_parquet(path) else []
    if not file_tree.path_exists(path):
        return []
    if path.is_dir():
        return [file.path for file in parquet_below(path)]
    archives.require_regular(path)
    return [path] if _is_parquet(path) else []


def _is_parquet(path: Any) -> bool:
    return has_ending(path.name) or starts_as_parquet(path)
