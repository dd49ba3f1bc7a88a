"""Load a dataset by its name, or from a path to the user's own files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnbuild.data import digits, published, registry
from nnbuild.data.dataset import Dataset
from nnbuild.data.download import Progress, UnavailableError
from nnbuild.data.file_tree import path_exists
from nnbuild.data.formats import load_path
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.errors import ConfigError, DataError, suggestion

NAMES = (*published.PUBLISHED, digits.NAME)
"""Names of the known datasets; anything else is a path."""


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
        cache: Folder for downloads; see `nnbuild.runtime.environment.cache_folder`.
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
        raise ConfigError(
            f"fallback {fallback!r}: {suggestion(str(fallback), [digits.NAME])}",
            setting="dataset.fallback",
            value=fallback,
        )
    if name_or_path not in NAMES:
        return _from_path(name_or_path, options)
    if options.keep:
        raise _no_columns(name_or_path, options)
    if name_or_path == digits.NAME:
        return digits.load()
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
                f"{', '.join(NAMES)}",
                setting="dataset.name",
                value=address,
            )
        raise ConfigError(
            f"dataset {address!r} is neither a known name nor an existing path; "
            f"{suggestion(address, NAMES)}",
            setting="dataset.name",
            value=address,
        )
    dataset = load_path(Path(address), options)
    if options.keep and dataset.train.kept is None:
        raise _no_columns(address, options)
    return dataset


def _no_columns(address: str, options: ReadOptions) -> DataError:
    """Return the error of a source without columns, of which `dataset.keep` names some."""
    remedy = (
        "set dataset.metadata to a table of the pictures' paths"
        if address not in NAMES and Path(address).is_dir()
        else "remove it, or write the images to Parquet with these columns"
    )
    return DataError(
        f"{address}: has no columns to keep, and dataset.keep names "
        f"{', '.join(options.keep)}; {remedy}"
    )
