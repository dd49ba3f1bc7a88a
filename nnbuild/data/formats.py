"""The file formats of images: how each is recognised, read as a dataset, and scored.

A format has one entry in `FORMATS`. A new format is a reader and its entry; training, scoring and
the error messages that list the formats read the entries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nnbuild.data import (
    dataset_reader,
    idx,
    image_folder,
    listing,
    metadata,
    npz,
    parquet,
    preprocessing,
)
from nnbuild.data.array_stream import ArrayStream
from nnbuild.data.arrays import Raw, assemble, slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.dataset_description import DESCRIPTION
from nnbuild.data.file_tree import File, files_from_json, subfolders
from nnbuild.data.locations import Location, locate, location_at
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.data.parquet_stream import ParquetStream
from nnbuild.data.picture_stream import PictureStream
from nnbuild.data.pixels import Workspace
from nnbuild.data.streams import (
    PARQUET,
    PICTURES,
    ImageStream,
    StreamOptions,
)
from nnbuild.errors import DataError
from nnbuild.store.filesystem import is_url, os_errors_as_store_errors

Loader = Callable[[Path, ReadOptions], Dataset]
Stream = Callable[[str, Sequence[File], StreamOptions], ImageStream]


@dataclass(frozen=True)
class Format:
    """A format of files with images.

    A file has the format if it begins with `magic`; otherwise if its name ends in one of
    `suffixes`; otherwise, if it has no suffix of another format, if it begins with one of `hints`.

    Attributes:
        name: Name in messages: `Parquet`.
        content: Content of a folder in this format for messages, such as `Parquet files`; empty if
            only nnbuild makes such folders.
        magic: First bytes that no other format has.
        suffixes: Endings of file names, in lower case.
        hints: First bytes that suggest the format, but occur in others.
        find: Function that returns the files in this format in a folder or a glob.
        load_file: Function that reads a dataset from one file.
        load_folder: Function that reads a dataset from a folder.
        stream_file: Function that opens one file for scoring.
        stream_files: Function that opens the files of a folder or a glob for scoring.
        is_remote: Whether files can be scored at a URL.
    """

    name: str
    content: str = ""
    magic: bytes | None = None
    suffixes: tuple[str, ...] = ()
    hints: tuple[bytes, ...] = ()
    find: Callable[[Location], Sequence[File]] = lambda _: []
    load_file: Loader | None = None
    load_folder: Loader | None = None
    stream_file: Stream | None = None
    stream_files: Stream | None = None
    is_remote: bool = False


def _of_arrays(read: Callable[[Path, ReadOptions], tuple[dict[str, Any], str]]) -> Loader:
    """Return a loader of datasets from a reader of arrays.

    Args:
        read: Function that returns the arrays by their names in `Raw`, and a note on how they were
            read, for the source of the dataset.
    """

    def load(path: Path, options: ReadOptions) -> Dataset:
        arrays, note = read(path, options)
        return assemble(
            Raw(**arrays),
            name=slug(path),
            source=f"{path}{note}",
            where=path,
            pixel_max=options.pixel_max,
            test_split=options.hold_out,
            part=options.part,
            preprocessing=options.preprocessing,
        )

    return load


def _load_parquet(path: Path, options: ReadOptions) -> Dataset:
    """Read a dataset from a Parquet file of images, or of the paths of pictures."""
    parquet.require_magic(path)
    if listing.names_files(path, options):
        return listing.load_parquet(path, options)
    return parquet.load_file(path, options)


def _stream_array(
    read: Callable[[Path, Workspace], NDArray[Any]],
    address: str,
    files: Sequence[File],
    options: StreamOptions,
) -> ArrayStream:
    """Open a file whose images are one array, which is unpacked to memory or to a mapped file."""
    return ArrayStream(address, read(files[0].path, options.workspace), options)


FORMATS = (
    Format(
        "dataset of the store",
        find=lambda location: [file for file in location.files if file.name == DESCRIPTION],
        load_folder=lambda path, options: dataset_reader.read_dataset(path, options.workspace),
    ),
    Format(
        "IDX",
        "IDX files",
        hints=idx.HINTS,
        find=idx.find_files,
        load_folder=_of_arrays(idx.read_folder),
        stream_file=partial(_stream_array, idx.read_images),
    ),
    Format(
        "Parquet",
        "Parquet files",
        magic=parquet.MAGIC,
        suffixes=parquet.SUFFIXES,
        find=parquet.find_files,
        load_file=_load_parquet,
        load_folder=parquet.load_folder,
        stream_file=ParquetStream,
        stream_files=ParquetStream,
        is_remote=True,
    ),
    Format(
        ".npz",
        ".npz files",
        magic=npz.MAGIC,
        suffixes=(npz.SUFFIX,),
        find=npz.find_files,
        load_file=_of_arrays(npz.read_file),
        load_folder=_of_arrays(npz.read_folder),
        stream_file=partial(_stream_array, npz.read_images),
    ),
    Format(
        "table of files (.csv, .tsv)",
        suffixes=tuple(metadata.DELIMITERS),
        load_file=listing.load_text,
    ),
    Format(
        "picture",
        "pictures by class",
        suffixes=tuple(sorted(preprocessing.SUFFIXES)),
        find=image_folder.find_files,
        load_folder=image_folder.load,
        stream_file=PictureStream,
        stream_files=PictureStream,
    ),
)
"""The formats, in the order in which a folder is compared with them."""


def load_path(path: Path, options: ReadOptions = DEFAULT) -> Dataset:
    """Read a dataset from an existing file or folder.

    Raises:
        DataError: The format is unknown, or the data are damaged.
    """
    if options.metadata is not None:
        if path.is_dir():  # of pictures, although the metadata may be a Parquet file among them
            return image_folder.load(path, options)
        raise DataError(
            f"{path}: not a folder of pictures, and dataset.metadata is for these alone; remove "
            "it: dataset.keep names columns of this file"
        )
    location = location_at(path)
    contents = _listed([each.content for each in FORMATS if each.content])
    if location.kind == "file":
        file_format = format_of(location)
        if file_format is not None and file_format.load_file is not None:
            return file_format.load_file(path, options)
        names = " nor ".join(each.name for each in FORMATS if each.load_file)
        raise DataError(
            f"{path}: neither {names}; expected one of these, or a folder of {contents}"
        )
    if not location.files and not subfolders(path):
        raise DataError(f"{path}: an empty folder; expected {contents}")
    for each in FORMATS:
        if each.load_folder is not None and each.find(location):
            return each.load_folder(path, options)
    return image_folder.load(path, options)  # its error says what is missing


def open_stream(address: str, options: StreamOptions) -> ImageStream:
    """Open the images at an address for scoring.

    Its files are listed, unless the options have an index of them.

    Args:
        address: A file in one of the formats, a folder or a glob of Parquet files or of pictures,
            or a URL of Parquet files.
        options: What to read, and for which network.

    Raises:
        DataError: There is no such input, its format is unknown, or its images do not have the
            shape that the network expects.
    """
    if options.index is not None:
        streams: dict[str, Stream] = {PICTURES: PictureStream, PARQUET: ParquetStream}
        reopen = streams[options.index["format"]]
        return reopen(address, files_from_json(options.index["files"]), options)
    location = locate(address)
    match = None if location is None else find_stream(location)
    if match is not None:
        stream, files = match
        return stream(address, files, options)
    raise _no_stream(address, location)


def _no_stream(address: str, location: Location | None) -> DataError:
    """Return the error of an address without files that can be scored."""
    if is_url(address):
        remote = _listed([each.name for each in FORMATS if each.is_remote])
        return DataError(
            f"{address}: found no {remote} files; expected a file, a folder or a glob of them"
        )
    single = ", ".join(each.name for each in FORMATS if each.stream_file)
    several = [each.name for each in FORMATS if each.stream_files]
    if location is not None and location.kind == "folder":
        return DataError(f"{address}: contains neither {' nor '.join(several)} files")
    problem = "unknown format" if location and location.kind == "file" else "no such input"
    return DataError(
        f"{address}: {problem}; expected a file ({single}), "
        f"or a folder or a glob of files ({', '.join(several)})"
    )


def find_stream(location: Location) -> tuple[Stream, Sequence[File]] | None:
    """Return the function that opens files for scoring, and the files to open.

    Returns:
        Both, by the first format that has them; None if no format has.

    Raises:
        DataError: A shard is missing, or the files have several formats.
    """
    formats = [each for each in FORMATS if location.is_local or each.is_remote]
    with os_errors_as_store_errors(f"list {location.address}"):
        if location.kind == "file":
            file_format = format_of(location)
            if file_format in formats and file_format.stream_file is not None:
                return file_format.stream_file, location.files
            return None
        for each in formats:
            if each.stream_files is not None and (files := each.find(location)):
                return each.stream_files, files
    return None


def is_there(address: str) -> bool:
    """Return whether an address leads to anything; whether it can be scored is checked later."""
    try:
        location = locate(address)
        if location is None:
            return False
        if location.is_local and location.kind != "glob":
            return bool(location.files)
        return find_stream(location) is not None
    except DataError:
        return True  # there is something, although it cannot be read


def format_of(location: Location) -> Format | None:
    """Return the format of a file; see `Format` for the order of the evidence.

    Raises:
        DataError: The file is a pipe, a socket or a device, or cannot be read.
    """
    head, name = location.head, location.files[0].name.lower()
    for is_match in (
        lambda each: each.magic is not None and head.startswith(each.magic),
        lambda each: name.endswith(each.suffixes),
        lambda each: head.startswith(each.hints),
    ):
        if (match := next(filter(is_match, FORMATS), None)) is not None:
            return match
    return None


def _listed(names: Sequence[str]) -> str:
    """Join names as in `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
