"""Load a dataset by its name, or from a path to the user's own files."""

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

NAMES = (*published.PUBLISHED, digits.NAME)
"""Names of the known datasets; anything else is a path."""

_ZIP_MAGIC, _PARQUET_MAGIC = b"PK", b"PAR1"
_ARRAYS = ".npz"


def default_cache() -> Path:
    """Return the folder for downloads, `$XDG_CACHE_HOME/nnbuild` or `~/.cache/nnbuild`."""
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
    """Load a dataset by its name or from a path.

    A path is an .npz with x_train and y_train (or similar names, see `nnbuild.config.names`), a
    Parquet file, or a folder: of IDX files, of Parquet files (train*.parquet, test*.parquet), of
    .npz files, of images by class, or a dataset of the store. Names take precedence over paths;
    write `./mnist` for a folder called `mnist`. If the source has no test split, a sixth of the
    images is held out, selected by content.

    Args:
        name_or_path: `mnist`, `fashion-mnist`, `kmnist`, `digits`, or a path.
        data_dir: Folder that may contain the files of published datasets, directly or in a
            subfolder of their name.
        cache: Folder for downloads; see `default_cache`.
        fallback: `digits` to load these if a published dataset is unavailable; None to fail.
        mirrors: URLs to use instead of the published ones, by name; an empty list for none.
        progress: Callback for the progress of downloads.
        timeout: Seconds to wait for a response of a server.
        options: Options for reading files at a path.

    Returns:
        The dataset; `name` and `source` describe what was actually read.

    Raises:
        ConfigError: The name is unknown and not an existing path, or the fallback is unknown.
        DataError: The data are damaged, have an unknown format, or are unavailable.
    """
    if fallback not in (None, digits.NAME):
        raise ConfigError(f"fallback {fallback!r}: {suggestion(str(fallback), [digits.NAME])}")
    if name_or_path == digits.NAME:
        return digits.load()
    if name_or_path not in published.PUBLISHED:
        return _from_path(name_or_path, options)
    try:
        return registry.load(
            published.PUBLISHED[name_or_path],
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
        return replace(dataset, source=f"{dataset.source}; fallback because {error}")


def _from_path(address: str, options: ReadOptions) -> Dataset:
    if not address or not path_exists(address):
        if "/" in address or "." in address:
            raise DataError(
                f"{address}: no such file or folder; expected an existing path or one of "
                f"{', '.join(NAMES)}"
            )
        raise ConfigError(
            f"dataset {address!r} is neither a known name nor an existing path; "
            f"{suggestion(address, NAMES)}"
        )
    path = Path(address)
    return _from_folder(path, options) if path.is_dir() else _from_file(path, options)


def _from_file(path: Path, options: ReadOptions) -> Dataset:
    magic = archives.first_bytes(path, 4)
    if magic == _PARQUET_MAGIC:
        return parquet.load_file(path, options)
    if magic.startswith(_ZIP_MAGIC) or path.suffix == ".npz":
        return _from_npz(path, options)
    if path.suffix == ".parquet":
        raise DataError(
            f"{path}: not a Parquet file, it starts with {magic.hex() or 'nothing'}; "
            "download or write it again"
        )
    raise DataError(
        f"{path}: neither .npz nor Parquet; expected one of these, or a folder of IDX files "
        "or images"
    )


def _from_npz(path: Path, options: ReadOptions) -> Dataset:
    roles = find_arrays(npz.names(path), path, options.keys)
    keys = list(roles.values())
    texts = [key for (_, kind), key in roles.items() if kind == "labels"]
    arrays = dict(zip(roles, npz.read(path, keys, texts=texts), strict=True))
    return _assembled(arrays, path, options)


def _assembled(
    arrays: Mapping[tuple[str, str], Any], path: Path, options: ReadOptions, note: str = ""
) -> Dataset:
    """Assemble a dataset from arrays by split and kind."""
    raw = Raw(**{f"{split}_{kind}": array for (split, kind), array in arrays.items()})
    return assemble(
        raw,
        name=slug(path),
        source=f"{path}{note}",
        where=path,
        pixel_max=options.pixel_max,
        test_split=options.hold_out,
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
    picture = next((file.name for file in files if decoding.has_ending(file.name)), None)
    if tabular and picture is not None:
        raise DataError(
            f"{path}: contains both Parquet files ({tabular[0].name}) and pictures ({picture}); "
            "use a separate folder for each"
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
    note = "; images transposed" * idx.is_transposed(prefix)
    return _assembled(arrays, path, options, note)


def _from_array_files(path: Path, names: Sequence[str], options: ReadOptions) -> Dataset:
    """Read a folder with one .npz of all arrays, or an .npz for each array."""
    if len(names) == 1:
        return _from_npz(path / names[0], options)
    files = {PurePosixPath(name).stem: path / name for name in names}
    arrays = {}
    for role, stem in find_arrays(files, path, options.keys, grouped=True).items():
        keys = npz.names(files[stem])
        if len(keys) != 1:
            raise DataError(f"{files[stem]}: contains {', '.join(keys[:10])}; expected one array")
        texts = keys if role[1] == "labels" else []
        (arrays[role],) = npz.read(files[stem], keys, texts=texts)
    return _assembled(arrays, path, options)
