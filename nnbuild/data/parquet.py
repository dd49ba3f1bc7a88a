"""Read datasets from Parquet files with a column of images and a column of labels."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.config.names import TRAIN, split_named, split_of_file
from nnbuild.data import archives, arrow_images, decoding, pixel_scale, preprocessing
from nnbuild.data.arrays import Raw, assemble, slug, with_channels
from nnbuild.data.dataset import Dataset
from nnbuild.data.file_tree import File, fingerprint, require_all_shards
from nnbuild.data.locations import Location, first_bytes, location_at
from nnbuild.data.metadata import as_texts, require_columns
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.data.pixels import PixelWriter
from nnbuild.data.preprocessing import PictureReader
from nnbuild.errors import DataError, StoreError

MAGIC = b"PAR1"
SUFFIXES = (".parquet", ".parq")
_SHARDS = "-of-"


def find_files(location: Location) -> list[File]:
    """Return the Parquet files in a folder or a glob.

    Raises:
        DataError: A shard is missing, or there are also pictures.
    """
    if location.suffixes <= preprocessing.SUFFIXES:  # only pictures
        return []
    selected = [file for file in location.files if is_parquet(file)]
    picture = next((name for name in location.names if decoding.has_ending(name)), None)
    if selected and picture is not None:
        contains = "matches" if location.kind == "glob" else "contains"
        raise DataError(
            f"{location.address}: {contains} both Parquet files ({selected[0].name}) and pictures "
            f"({picture}); use a separate folder for each"
        )
    if location.kind == "folder":
        require_all_shards((file.name for file in selected), location.address)
    elif _SHARDS not in location.address.rpartition("/")[2]:  # otherwise it may select some
        require_all_shards((str(file.path) for file in selected), location.address)
    return selected


def is_parquet(file: File) -> bool:
    """Return whether a file is Parquet by its suffix, or without suffix by its first bytes."""
    name = file.name.rpartition("/")[2]
    if "." in name:
        return name.lower().endswith(SUFFIXES)
    return first_bytes(file.path).startswith(MAGIC)


_LABEL_BYTES = 8  # the widest integer
_GROUP_BYTES = 32 << 20
_BUFFER_BYTES = 1 << 20
_Batch = tuple[NDArray[Any], NDArray[Any], pa.Table]
"""Images, labels and kept columns of some rows."""
_MAX_NAMED = 5
_CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_READ_METADATA = """
import sys
sys.modules["numpy"] = None  # pyarrow works without it, and starts in half the time
import pyarrow.parquet as pq
for path in sys.stdin.read().split("\\0"):
    print(path, end="\\0", flush=True)
    try:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            for column in range(metadata.row_group(group).num_columns):
                metadata.row_group(group).column(column)
    except Exception:
        continue
"""


def load_file(path: Path, options: ReadOptions = DEFAULT) -> Dataset:
    """Read a dataset from one Parquet file, and hold out a sixth of the images for testing.

    Raises:
        DataError: See `load_folder`.
    """
    require_magic(path)
    return _dataset(path, {TRAIN: [path]}, options)


def require_magic(path: Path) -> None:
    """Refuse a file that is Parquet by its name only.

    Raises:
        DataError: It does not begin as a Parquet file, or is not an ordinary file.
    """
    head = archives.first_bytes(path, len(MAGIC))
    if head != MAGIC:
        raise DataError(
            f"{path}: not a Parquet file, it starts with {head.hex() or 'nothing'}; "
            "download or write it again"
        )


def load_folder(path: Path, options: ReadOptions = DEFAULT) -> Dataset:
    """Read a dataset from the Parquet files below a folder.

    The split of a file is the beginning of its name, `train-00000-of-00001.parquet`, or its folder,
    `train/0.parquet`, in any case; see `nnbuild.config.names`. If no name contains a split, all
    files are for training. Without test files, a sixth of the images is held out.

    The column of images is fixed_size_binary, a list of numbers (also nested), a fixed-shape
    tensor, or PNG bytes, alone or in a struct with `bytes`, as Hugging Face writes them. Pixels
    without a shape are read as a grayscale square, unless the metadata of the schema define height,
    width and channels. The pixels of each file are scaled separately. For the labels see
    `nnbuild.data.labels`.

    Raises:
        DataError: A file is damaged, lacks a column, has nulls or images of several sizes, a shard
            is missing, or there are no training files.
    """
    files = find_files(location_at(path))
    splits, unused = _by_split(files, path)
    if not splits.get(TRAIN):
        raise DataError(f"{path}: no train*.parquet; expected train*.parquet and test*.parquet")
    dataset = _dataset(path, splits, options)
    if not unused:
        return dataset
    names = ", ".join(unused[:_MAX_NAMED]) + ", …" * (len(unused) > _MAX_NAMED)
    return replace(dataset, source=f"{dataset.source}; not read, not named after a split: {names}")


def _by_split(files: Sequence[File], where: object) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the files of each split, and the names of files without a split."""
    splits: dict[str, list[Path]] = {}
    above: dict[str, str] = {}
    unused = []
    for file in files:
        place = _split_of(PurePosixPath(file.name))
        if place is None:
            unused.append(file.name)
            continue
        split, folder = place
        splits.setdefault(split, []).append(file.path)
        above.setdefault(folder, file.name)
    if not splits:
        return {TRAIN: [file.path for file in files]}, []
    if len(above) > 1:
        first, second = list(above.values())[:2]
        raise DataError(
            f"{where}: {first} and {second} belong to two datasets; use the folder of one of them"
        )
    return splits, unused


def _split_of(name: PurePosixPath) -> tuple[str, str] | None:
    """Return the split of a file, and the folder of its dataset."""
    if (split := split_of_file(name.name)) is not None:
        return split, str(name.parent)
    for folder in name.parents:
        if (split := split_named(folder.name)) is not None:
            return split, str(folder.parent)
    return None


def _dataset(path: Path, splits: Mapping[str, Sequence[Path]], options: ReadOptions) -> Dataset:
    paths = [each for files in splits.values() for each in files]
    for each in paths:
        archives.require_regular(each)
    require_readable_metadata(paths)
    pictures = options.picture_reader()
    read = {split: _read(files, options, pictures) for split, files in splits.items()}
    pictures.require_few_errors(path)
    arrays: dict[str, Any] = {
        f"{split}_{kind}": array
        for split, (images, labels, _, _) in read.items()
        for kind, array in (("images", images), ("labels", labels))
    }
    if options.keep:
        arrays["kept"] = {split: kept for split, (*_, kept) in read.items()}
    dataset = assemble(
        Raw(**arrays),
        name=slug(path),
        source=str(path),
        where=path,
        class_names=_class_names(splits[TRAIN][0], options),
        pixel_scales={split: scale for split, (_, _, scale, _) in read.items()},
        test_split=options.hold_out,
        part=options.part,
    )
    return replace(dataset, unreadable=tuple(pictures.errors))


@contextmanager
def errors_as_data_errors(path: Path) -> Iterator[None]:
    """Convert errors on a damaged Parquet file to a `DataError` that names it.

    Raises:
        DataError: The file is damaged.
        StoreError: See `nnbuild.data.archives.outage`.
    """
    try:
        yield
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        MemoryError,
    ) as error:
        if (problem := archives.outage(error, path)) is not None:
            raise problem from error
        reason = archives.reason_of(error)[:300]
        raise DataError(
            f"{path}: not readable as Parquet ({reason}); download or write it again"
        ) from error


def _read(
    paths: Sequence[Path], options: ReadOptions, pictures: PictureReader
) -> tuple[NDArray[np.uint8], NDArray[Any], str, pa.Table]:
    """Return images and labels of several files in order, their scale, and kept columns."""
    writer = PixelWriter(options.workspace)
    shape: tuple[int, ...] | None = None
    labels: list[NDArray[Any]] = []
    kept: list[pa.Table] = []
    scales: dict[str, None] = {}
    for path in paths:
        white, parts = _with_white(path, options, pictures)
        scale = ""
        for part_images, part_labels, part_kept in parts:
            scale = scale or pixel_scale.description(part_images, white)
            scales[scale] = None
            shaped = with_channels(part_images, path)
            pixels = pixel_scale.to_uint8(shaped, white, path)
            shape = pixels.shape[1:] if shape is None else shape
            if pixels.shape[1:] != shape:
                shapes = f"{shape} and {pixels.shape[1:]}"
                raise DataError(f"{path.parent}: images of shapes {shapes}; expected one")
            writer.append(pixels)
            labels.append(part_labels)
            kept.append(part_kept)
    if shape is None:
        raise DataError(f"{paths[0]}: contains no rows; expected images")
    if len({(each.shape[1:], each.dtype.kind) for each in labels}) > 1:
        labels = [_as_texts(each, paths[0].parent) for each in labels]
    return writer.finish(), np.concatenate(labels), ", ".join(scales), pa.concat_tables(kept)


def _with_white(
    path: Path, options: ReadOptions, pictures: PictureReader
) -> tuple[float, Iterable[_Batch]]:
    """Return the pixel value of white in a file, and its batches.

    The scale of floats depends on the whole file: they are held for it, or read twice if memory
    does not hold them.
    """
    state = fingerprint(path)
    batches = _batches(path, options, pictures)
    if options.pixel_max is not None:
        return options.pixel_max, batches
    first = next(batches, None)
    if first is None or first[0].dtype.kind != "f":
        return pixel_scale.WHITE, batches if first is None else itertools.chain([first], batches)
    held: list[_Batch] | None = []
    size = 0

    def images() -> Iterator[NDArray[Any]]:
        nonlocal held, size
        for batch in itertools.chain([first], batches):
            size += batch[0].nbytes
            held = [*held, batch] if held is not None and options.workspace.holds(size) else None
            yield batch[0]

    white = pixel_scale.white_of_floats(images(), path)
    return white, _unchanged(path, options, pictures, state) if held is None else held


def _unchanged(
    path: Path, options: ReadOptions, pictures: PictureReader, state: str | None
) -> Iterator[_Batch]:
    """Yield the batches of a file whose scale is known, and refuse it if it has changed since."""
    yield from _batches(path, options, pictures)
    if fingerprint(path) != state:
        raise DataError(f"{path}: changed while it was read; run again once it is complete")


def _as_texts(labels: NDArray[Any], where: object) -> NDArray[Any]:
    """Convert labels to strings, the common type of files with different label types."""
    if labels.ndim > 1:
        raise DataError(
            f"{where}: one-hot labels mixed with others; expected one format in all files"
        )
    whole = labels.astype(np.int64) if labels.dtype.kind == "f" else labels
    if labels.dtype.kind == "f" and (whole != labels).any():
        raise DataError(f"{where}: labels that are not whole numbers; expected integers or strings")
    return np.array([str(label) for label in whole], dtype=object)


def require_readable_metadata(paths: Sequence[Path]) -> None:
    """Read the metadata of the files in a separate process.

    Some damage there, such as a level histogram of another size, makes Arrow abort the process.
    """
    process = subprocess.run(  # noqa: S603
        [sys.executable, "-I", "-X", "utf8", "-c", _READ_METADATA],
        input=b"\0".join(os.fsencode(path.absolute()) for path in paths),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if -process.returncode in _CRASHES:
        path = paths[max(process.stdout.count(b"\0") - 1, 0)]
        raise DataError(
            f"{path}: not readable as Parquet (damaged metadata); download or write it again"
        )
    if process.returncode < 0:
        raise StoreError(
            f"{paths[0].parent}: the process that checks the Parquet files was killed by signal "
            f"{-process.returncode}; run again"
        )


def _batches(path: Path, options: ReadOptions, pictures: PictureReader) -> Iterator[_Batch]:
    """Yield images, labels and kept columns a batch at a time, within bounds on their size."""
    room = archives.allowance(archives.require_regular(path))
    with errors_as_data_errors(path):
        names = pq.read_schema(path).names
        image = arrow_images.image_column(names, options.image_column, path)
        label = arrow_images.label_column(names, options.label_column, path)
        require_columns(names, options.keep, path)
        packed = _byte_columns(path, (image, f"{image}.bytes", label))
    with errors_as_data_errors(path), _open(path, packed) as file:
        schema = file.schema_arrow
        arrow_images.require_labels(schema.field(label).type, path, label)
        reader = arrow_images.reader(
            schema.field(image).type, schema.metadata or {}, path, image, pictures
        )
        first = 0
        for group in range(file.num_row_groups):
            size = _expanded_bytes(file.metadata.row_group(group), reader, image)
            if not 0 <= size <= room:
                raise DataError(
                    f"{path}: row group {group} would expand to {size} bytes; refused as a bomb"
                )
            columns = list(dict.fromkeys((reader.column, label, *options.keep)))
            for table in _tables(file, group, columns, size * reader.reading_factor):
                labels = arrow_images.labels(table[label], first, path, label)
                images, rows = reader.read_rows(table[image], first, room, path)
                room -= images.nbytes
                first += table.num_rows
                if len(rows):
                    kept = as_texts(table.select(list(options.keep)), path)
                    yield images, labels[rows], kept.take(pa.array(rows, pa.int64()))


def _open(path: Path, packed: Sequence[str]) -> pq.ParquetFile:
    """Open a file to read it a batch at a time, a column of it through a small buffer.

    By default Arrow fetches a row group first, which can be the whole file.
    """
    return pq.ParquetFile(path, read_dictionary=packed, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _tables(
    file: pq.ParquetFile, group: int, columns: Sequence[str], size: int
) -> Iterator[pa.Table]:
    """Yield the rows of a row group: a small one as one table, a large one in batches.

    Args:
        file: Open file.
        group: Number of the row group.
        columns: Columns to read.
        size: Memory needed to read the group, in bytes.
    """
    if size <= _GROUP_BYTES:
        yield file.read_row_group(group, columns=columns)
        return
    rows = file.metadata.row_group(group).num_rows
    batch = max(1, rows * _GROUP_BYTES // size)
    for each in file.iter_batches(batch, row_groups=[group], columns=columns):
        yield pa.Table.from_batches([each])


def _byte_columns(path: Path, names: Sequence[str]) -> list[str]:
    """Return the columns of bytes and strings, to read as dictionaries that store repeats once."""
    schema = pq.read_metadata(path).schema
    leaves = [schema.column(index) for index in range(len(schema))]
    return [
        leaf.path for leaf in leaves if leaf.path in names and leaf.physical_type == "BYTE_ARRAY"
    ]


def _expanded_bytes(group: Any, reader: arrow_images.Reader, image: str) -> int:
    """Return the memory needed to read a row group, by its metadata."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    pixels = [chunk for chunk in chunks if _is_within(chunk.path_in_schema, image)]
    values: int = sum(chunk.num_values * reader.value_bytes for chunk in pixels)
    pages: int = sum(chunk.total_uncompressed_size for chunk in pixels)
    rows: int = group.num_rows
    return max(values, pages) + rows * _LABEL_BYTES


def _is_within(path: str, column: str) -> bool:
    """Return whether a leaf of a schema belongs to a column, whose name may have dots."""
    return path == column or path.startswith(f"{column}.")


def _class_names(path: Path, options: ReadOptions) -> tuple[str, ...] | None:
    """Return the class names in Hugging Face's metadata; None if there are none."""
    with errors_as_data_errors(path):
        schema = pq.read_schema(path)
        label = arrow_images.label_column(schema.names, options.label_column, path)
        text = (schema.metadata or {}).get(b"huggingface", b"null")
        try:
            names = json.loads(text)["info"]["features"][label]["names"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
    return (
        tuple(names)
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
        else None
    )
