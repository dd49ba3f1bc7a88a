"""Which files are Parquet: by their ending, or, without one, by their first bytes."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from nnbuild.data import archives
from nnbuild.data.file_tree import File, files_below, is_local, require_all_shards

_MAGIC = b"PAR1"
_ENDINGS = (".parquet", ".parq")


def parquet_below(folder: Any) -> list[File]:
    """List the Parquet files below a folder, in the order of their paths.

    Raises:
        DataError: As for `nnbuild.data.file_tree.files_below`, or a numbered shard is missing.
    """
    return parquet_among(files_below(folder), folder)


def parquet_among(files: Sequence[File], where: object) -> list[File]:
    """Select the Parquet files of a folder; see `parquet_below`."""
    found = [file for file in files if is_parquet(file)]
    require_all_shards((file.name for file in found), where)
    return found


def is_parquet(file: File) -> bool:
    """Return whether a file is Parquet by its ending, or, if it has none, by its first bytes."""
    name = PurePosixPath(file.name).name
    return has_ending(name) or ("." not in name and starts_as_parquet(file.path))


def has_ending(name: str) -> bool:
    """Return whether a name ends as those of Parquet files do."""
    return name.lower().endswith(_ENDINGS)


def starts_as_parquet(path: Any) -> bool:
    """Return whether a file begins with the bytes that every Parquet file begins with."""
    if is_local(path):
        return archives.first_bytes(path, len(_MAGIC)) == _MAGIC
    content: bytes = path.fs.cat_file(path.path, start=0, end=len(_MAGIC))
    return content == _MAGIC
