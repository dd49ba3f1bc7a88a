"""Where data comes from: a dataset's name, or a path to files of one's own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from nnbuild.config.names import find_arrays
from nnbuild.data import (
    archives,
    decoding,
    digits,
    idx,
    image_folder,
    npz,
    parquet,
    published,
    registry,
    tables,
)
from nnbuild.data.arrays import Raw, assemble, slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.download import Progress, UnavailableError
from nnbuild.data.file_tree import files_below, path_exists, subfolders
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.data.parquet import parquet_among
from nnbuild.errors import ConfigError, DataError, suggestion

NAMES = (*published.NAMED, digits.NAME)
"""The datasets that have a name; anything else is a path."""

_ZIP_MAGIC, _PARQUET_MAGIC = b"PK", b"PAR1"
_ARRAYS = ".npz"


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
    options: ReadOptions = DEFAULT,
) -> Dataset:
    """Read a dataset by its name or from a path.

    A path is an .npz with x_train and y_train (or names of that kind, see `nnbuild.data.arrays`), a
    Parquet file, or a folder of IDX files, of Parquet files (train*.parquet, test*.parquet), of .npz files, or of
    images by class, or what the store holds of a dataset. A name wins over a path: write `./mnist` for a
    folder of that name. A validation split is used as it is; where a source has no test split, a sixth of each
    class is held out, chosen by content.

    Args:
        name_or_path: `mnist`, `fashion-mnist`, `kmnist`, `digits`, or a path.
        data_dir: a folder that may hold the named datasets' files, directly or in a subfolder of their name.
        cache: the folder for downloads; see `default_cache`.
        fallback: `digits` to take these if a named dataset is in no place; None to fail.
        mirrors: addresses to use instead of the published ones, by name; an empty list for none.
        progress: called during downloads with the file's name, the bytes so far, and the total or None.
        timeout: seconds for which a server may be silent.
        options: How files at a path are to be read.

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
        return _from_path(name_or_path, options)
    try:
        return registry.load(
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


def _from_path(given: str, options: ReadOptions) -> Dataset:
    if not given or not path_exists(given):
        if "/" in given or "." in given:
            raise DataError(
                f"{given}: no such file or folder; give one that exists, or a name: {', '.join(NAMES)}"
            )
        raise ConfigError(
            f"dataset {given!r} is neither a known name nor an existing path; {suggestion(given, NAMES)}"
        )
    path = Path(given)
    return _from_folder(path, options) if path.is_dir() else _from_file(path, options)


def _from_file(path: Path, options: ReadOptions) -> Dataset:
    magic = archives.first_bytes(path, 4)
    if magic == _PARQUET_MAGIC:
        return parquet.load_file(path, options)
    if magic.startswith(_ZIP_MAGIC) or path.suffix == ".npz":
        return _from_npz(path, options)
    if path.suffix == ".parquet":
        raise DataError(
            f"{path}: starts with {magic.hex() or 'nothing'}, no Parquet file; fetch or write it again"
        )
    raise DataError(
        f"{path}: neither .npz nor Parquet; expected one of these, or the folder of the IDX files or images"
    )


def _from_npz(path: Path, options: ReadOptions) -> Dataset:
    found = find_arrays(npz.names(path), path, options.keys)
    keys = list(found.values())
    texts = [key for (_, kind), key in found.items() if kind == "labels"]
    arrays = dict(zip(found, npz.read(path, keys, texts=texts), strict=True))
    return _assembled(arrays, path, options)


def _assembled(
    arrays: Mapping[tuple[str, str], Any], path: Path, options: ReadOptions, note: str = ""
) -> Dataset:
    """Make a dataset from arrays by split and kind."""
    raw = Raw(**{f"{split}_{kind}": array for (split, kind), array in arrays.items()})
    return assemble(
        raw,
        name=slug(path),
        source=f"{path}{note}",
        where=path,
        pixel_max=options.pixel_max,
    )


def _from_folder(path: Path, options: ReadOptions) -> Dataset:
    files = files_below(path)
    top = [file.name for file in files if "/" not in file.name]
    if not files and not subfolders(path):
        raise DataError(
            f"{path}: an empty folder; expected IDX files, Parquet files, or images by class"
        )
    if tables.DESCRIPTION in top:
        return tables.read_dataset(path)
    if idx.find(path):
        idx.require_all(path)
    if (found := idx.find_set(path, top)) is not None:
        return _from_idx(path, *found, options)
    tabular = parquet_among(files, path)
    seen = next((file.name for file in files if decoding.has_ending(file.name)), None)
    if tabular and seen is not None:
        raise DataError(
            f"{path}: holds Parquet ({tabular[0].name}) and pictures ({seen}); "
            "give the folder of one of them"
        )
    if tabular:
        return parquet.load_folder(path, options)
    array_files = [name for name in top if name.endswith(_ARRAYS)]
    if array_files:
        return _from_array_files(path, array_files, options)
    return image_folder.load(path, options)


def _from_idx(path: Path, prefix: str, files: idx.Files, options: ReadOptions) -> Dataset:
    arrays = {
        (split, kind): (idx.read_images if kind == "images" else idx.read_labels)(file)
        for (split, kind), file in files.items()
    }
    note = "; images turned upright" * idx.is_transposed(prefix)
    return _assembled(arrays, path, options, note)


def _from_array_files(path: Path, names: Sequence[str], options: ReadOptions) -> Dataset:
    """Read a folder of one .npz with all arrays, or of an .npz for each array."""
    if len(names) == 1:
        return _from_npz(path / names[0], options)
    files = {PurePosixPath(name).stem: path / name for name in names}
    arrays = {}
    for role, stem in find_arrays(files, path, options.keys, grouped=True).items():
        held = npz.names(files[stem])
        if len(held) != 1:
            raise DataError(f"{files[stem]}: holds {', '.join(held[:10])}; expected one array")
        texts = held if role[1] == "labels" else []
        (arrays[role],) = npz.read(files[stem], held, texts=texts)
    return _assembled(arrays, path, options)
