"""Where data comes from: a dataset's name, or a path to files of one's own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnbuild.data import archives, digits, folder, idx, named, npz, parquet, published, tables
from nnbuild.data.arrays import Raw, assemble, slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.download import Progress, UnavailableError
from nnbuild.errors import ConfigError, DataError, suggestion

NAMES = (*published.NAMED, digits.NAME)
"""The datasets that have a name; anything else is a path."""

_ZIP_MAGIC, _PARQUET_MAGIC = b"PK", b"PAR1"


def default_cache() -> Path:
    """The folder for downloads: `$XDG_CACHE_HOME/nnbuild`, else `~/.cache/nnbuild`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "nnbuild"


def load(
    name_or_path: str,
    *,
    data_dir: Path | None,
    cache: Path,
    fallback: str | None = None,
    mirrors: Mapping[str, Sequence[str]] | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Dataset:
    """A dataset by its name or from a path.

    A path is an .npz with x_train, y_train, x_test and y_test, a Parquet file, or a folder of IDX files, of
    Parquet files (train*.parquet, test*.parquet) or of images by class, or what the store holds of a dataset.
    A name wins over a path: write `./mnist` for a folder of that name. Where a source has no test split, a
    sixth of each class is held out, chosen by content.

    Args:
        name_or_path: `mnist`, `fashion-mnist`, `kmnist`, `digits`, or a path.
        data_dir: a folder that may hold the named datasets' files, directly or in a subfolder of their name.
        cache: the folder for downloads; see `default_cache`.
        fallback: `digits` to take these if a named dataset is in no place; None to fail.
        mirrors: addresses to use instead of the published ones, by name; an empty list for none.
        progress: called during downloads with the file's name, the bytes so far, and the total or None.
        timeout: seconds for which a server may be silent.

    Returns:
        The dataset; its `name` says what was really read, its `source` from where.

    Raises:
        ConfigError: neither a known name nor an existing path; or an unknown fallback.
        DataError: what is there is damaged or of no known form; or nothing is there and there is no fallback.
    """
    if fallback not in (None, digits.NAME):
        raise ConfigError(f"fallback {fallback!r}: {suggestion(str(fallback), [digits.NAME])}")
    if name_or_path == digits.NAME:
        return digits.load()
    if name_or_path not in published.NAMED:
        return _from_path(name_or_path)
    try:
        return named.load(
            published.NAMED[name_or_path],
            data_dir=data_dir,
            cache=cache,
            mirrors=(mirrors or {}).get(name_or_path),
            progress=progress,
            timeout=timeout,
        )
    except UnavailableError as error:
        if fallback is None:
            raise
        dataset = digits.load()
        return replace(dataset, source=f"{dataset.source}; fallback, as {error}")


def _from_path(given: str) -> Dataset:
    if not given or not os.path.exists(given):  # noqa: PTH110  (Path.exists raises on names that are too long)
        if "/" in given or "." in given:
            raise DataError(
                f"{given}: no such file or folder; give one that exists, or a name: {', '.join(NAMES)}"
            )
        raise ConfigError(
            f"dataset {given!r} is neither a known name nor an existing path; {suggestion(given, NAMES)}"
        )
    path = Path(given)
    return _from_folder(path) if path.is_dir() else _from_file(path)


def _from_file(path: Path) -> Dataset:
    archives.require_regular(path)
    with archives.translated(path), path.open("rb") as file:
        magic = file.read(4)
    if magic == _PARQUET_MAGIC:
        return parquet.load_file(path)
    if magic.startswith(_ZIP_MAGIC) or path.suffix == ".npz":
        return assemble(Raw(*npz.read(path)), name=slug(path), source=str(path), where=path)
    if path.suffix == ".parquet":
        raise DataError(
            f"{path}: starts with {magic.hex() or 'nothing'}, no Parquet file; fetch or write it again"
        )
    raise DataError(
        f"{path}: neither .npz nor Parquet; expected one of these, or the folder of the IDX files or images"
    )


def _from_folder(path: Path) -> Dataset:
    with archives.translated(path):
        names = sorted(entry.name for entry in path.iterdir())
    if not names:
        raise DataError(
            f"{path}: an empty folder; expected IDX files, Parquet files, or images by class"
        )
    if idx.find(path):
        return assemble(Raw(*idx.read_all(path)), name=slug(path), source=str(path), where=path)
    if tables.DESCRIPTION in names:
        return tables.read_dataset(path)
    if any(name.endswith(".parquet") for name in names):
        return parquet.load_folder(path)
    return folder.load(path)
