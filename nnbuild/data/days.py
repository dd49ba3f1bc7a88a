"""Days of a dated source of labelled images, such as `/srv/labelled/date={date}/`.

A day is a file or a folder of any format that `nnbuild.data.sources` reads, local or at a URL.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from nnbuild.data import sources
from nnbuild.data.arrays import slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.file_tree import files_below, matches
from nnbuild.data.listing import fingerprint_of_source
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.data.preprocessing import fit_dataset
from nnbuild.errors import DataError
from nnbuild.runtime.date_patterns import address_of_day, day_of_address, undated_part, wildcard
from nnbuild.runtime.environment import cache_folder
from nnbuild.store.filesystem import (
    absolute_address,
    is_remote,
    is_url,
    open_root,
    os_errors_as_store_errors,
)


class SourceDay(NamedTuple):
    """A day that a source has.

    Attributes:
        day: The day.
        address: Path or URL of its file or folder.
        path: Local path, or a path of universal_pathlib.
        fingerprint: Digest that changes when its files do, or its metadata.
        metadata: File with the metadata of its pictures; None if there is none.
    """

    day: date
    address: str
    path: Any
    fingerprint: str
    metadata: Path | None = None


def dataset_name(pattern: str) -> str:
    """Return the name of the dataset of a dated source, from the folder that holds the days."""
    above = undated_part(pattern)
    return slug(Path(above.rpartition("://")[2] if is_url(above) else above or "."))


def absolute(pattern: str) -> str:
    """Return a pattern as a URL or an absolute path, without a slash at the end."""
    return absolute_address(pattern).rstrip("/")


def days_at(
    pattern: str, first: date | None, last: date, options: ReadOptions = DEFAULT
) -> list[SourceDay]:
    """List the days that a source has, in order; a day without files does not count.

    Args:
        pattern: Path or URL with `{date}`, or with `{date:FORMAT}`.
        first: First day to list; None for no limit.
        last: Last day to list.
        options: Options for reading the files; `metadata` may have `{date}` too.

    Raises:
        DataError: A folder cannot be listed, or has a pipe, a socket or a device.
        StoreError: A URL cannot be opened.
    """
    pattern, metadata = absolute(pattern), options.metadata
    found = {}
    with os_errors_as_store_errors(f"list {pattern}"):
        for address, path in _candidates(pattern):
            day = day_of_address(pattern, address)
            if day is None or day > last or (first is not None and day < first):
                continue
            about = None if metadata is None else Path(address_of_day(str(metadata), day))
            if (digest := _fingerprint(path, about, options)) is not None:
                found[day] = SourceDay(day, address, path, digest, about)
    return [found[day] for day in sorted(found)]


def _fingerprint(path: Any, metadata: Path | None, options: ReadOptions) -> str | None:
    return fingerprint_of_source(path, metadata=metadata, image_column=options.image_column)


def _candidates(pattern: str) -> Iterator[tuple[str, Any]]:
    """Yield address and path of everything that may be the day of a pattern."""
    above = undated_part(pattern)
    root = open_root(above) if is_url(above) else Path(f"{above}/")
    for path in matches(root, wildcard(pattern.removeprefix(f"{above}/"))):
        below, start = (str(getattr(each, "path", each)).rstrip("/") for each in (path, root))
        yield f"{above}/{below.removeprefix(start).lstrip('/')}", path


def read_day(source: SourceDay, options: ReadOptions) -> Dataset:
    """Read the images of a day, which may lack classes and splits.

    Without a test split of its own, images are held out by their content.

    Raises:
        DataError: The day is damaged, of no known format, or changes while it is read.
    """
    with _local_copy(source) as path:
        try:
            dataset = sources.load(
                str(path),
                data_dir=None,
                cache=cache_folder(),
                options=replace(options, part=True, metadata=source.metadata),
            )
        except DataError as error:
            if path == source.path:
                raise
            raise DataError(str(error).replace(str(path), source.address)) from error
    if _fingerprint(source.path, source.metadata, options) != source.fingerprint:
        raise DataError(
            f"{source.address}: changed while it was read; run again once the day is complete"
        )
    named = replace(
        dataset,
        source=dataset.source.replace(str(path), source.address),
        unreadable=tuple(each.replace(str(path), source.address) for each in dataset.unreadable),
    )
    return fit_dataset(named, options.preprocessing)


@contextmanager
def _local_copy(source: SourceDay) -> Iterator[Path]:
    """Yield a local path of a day, a temporary copy if it is remote."""
    if not is_remote(source.path):
        yield source.path
        return
    path = source.path
    with (
        tempfile.TemporaryDirectory(prefix="nnbuild-day-") as folder,
        os_errors_as_store_errors(f"fetch {source.address}"),
    ):
        target = Path(folder) / path.name
        files = [(each.path, each.name) for each in files_below(path)] if path.is_dir() else []
        for file, name in files:
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            file.fs.get_file(file.path, str(copy))
        if not files:
            path.fs.get_file(path.path, str(target))
        yield target
