"""Datasets in Parquet: a column of images in any of the usual forms, and one of labels."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.config.names import TRAIN, split_named, split_of_file
from nnbuild.data import archives, arrow_images, pixel_scale
from nnbuild.data.arrays import Raw, assemble, slug, with_channels
from nnbuild.data.dataset import Dataset
from nnbuild.data.file_tree import File, files_below, is_local, require_all_shards
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.errors import DataError

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


_LABEL_BYTES = 8  # the widest integer
_MOST_NAMED = 5
_LOOK = """
import sys
import pyarrow.parquet as pq
for path in sys.argv[1:]:
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
    """Read a dataset from one Parquet file; a sixth of each class is held out for testing.

    Raises:
        DataError: See `load_folder`.
    """
    archives.require_regular(path)
    return _dataset(path, {TRAIN: [path]}, options)


def load_folder(path: Path, options: ReadOptions = DEFAULT) -> Dataset:
    """Read a dataset from the Parquet files below a folder.

    The split of a file is what its name begins with, `train-00000-of-00001.parquet`, or the folder
    that it is in, `train/0.parquet`, without regard to case; see `nnbuild.data.splits`. If no name
    says a split, all files are training files. Without test files a sixth of each class is held
    out.

    The column of images is fixed_size_binary, a list of numbers (also nested), a fixed-shape
    tensor, or PNG bytes, alone or in a struct with `bytes`, as Hugging Face writes them. Pixels
    without a shape are taken as a grey square, unless the schema's metadata give height, width and
    channels. The pixels of each file are scaled by themselves. For the labels see
    `nnbuild.data.labels`.

    Raises:
        DataError: A file is damaged, lacks a column, holds nulls or images of several sizes, a
            shard is missing, or there are no training files.
    """
    files = parquet_below(path)
    splits, unused = _by_split(files, path)
    if not splits.get(TRAIN):
        raise DataError(f"{path}: no train*.parquet; expected train*.parquet and test*.parquet")
    dataset = _dataset(path, splits, options)
    if not unused:
        return dataset
    named = ", ".join(unused[:_MOST_NAMED]) + ", …" * (len(unused) > _MOST_NAMED)
    return replace(dataset, source=f"{dataset.source}; not read, since they name no split: {named}")


def _by_split(files: Sequence[File], where: object) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the files of each split, and the names of those that belong to none."""
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
            f"{where}: {first} and {second} are of two datasets; give the folder of one of them"
        )
    return splits, unused


def _split_of(name: PurePosixPath) -> tuple[str, str] | None:
    """Return the split of a file, and the folder that holds all splits of its dataset."""
    if (split := split_of_file(name.name)) is not None:
        return split, str(name.parent)
    for folder in name.parents:
        if (split := split_named(folder.name)) is not None:
            return split, str(folder.parent)
    return None


def _dataset(path: Path, splits: Mapping[str, Sequence[Path]], options: ReadOptions) -> Dataset:
    read = {split: _read(files, options) for split, files in splits.items()}
    given = {
        f"{split}_{kind}": array
        for split, (images, labels, _) in read.items()
        for kind, array in (("images", images), ("labels", labels))
    }
    return assemble(
        Raw(**given),
        name=slug(path),
        source=str(path),
        where=path,
        class_names=_class_names(splits[TRAIN][0], options),
        pixel_scales={split: scale for split, (_, _, scale) in read.items()},
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
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
        reason = archives.reason_of(error)[:300]
        raise DataError(
            f"{path}: no readable Parquet ({reason}); fetch or write it again"
        ) from error


def _read(
    paths: Sequence[Path], options: ReadOptions
) -> tuple[NDArray[np.uint8], NDArray[Any], str]:
    """Return images and labels of several files, one after the other, and how they were scaled."""
    for path in paths:
        archives.require_regular(path)
    _require_sound(paths)
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[Any]] = []
    scales: dict[str, None] = {}
    for path in paths:
        parts = list(_row_groups(path, options))
        white = _white(parts, path, options)
        for part, of_part in parts:
            images.append(pixel_scale.to_uint8(with_channels(part, path), white, path))
            labels.append(of_part)
            if images[-1].shape[1:] != images[0].shape[1:]:
                shapes = f"{images[0].shape[1:]} and {images[-1].shape[1:]}"
                raise DataError(f"{path.parent}: images of shapes {shapes}; expected one")
        if parts:
            scales[pixel_scale.description(parts[0][0], white)] = None
    if not images:
        raise DataError(f"{paths[0]}: holds no rows; expected images")
    if len({(each.shape[1:], each.dtype.kind) for each in labels}) > 1:
        labels = [_as_texts(each, paths[0].parent) for each in labels]
    if len(images) == 1:
        return images[0], labels[0], ", ".join(scales)
    return np.concatenate(images), np.concatenate(labels), ", ".join(scales)


def _white(
    parts: Sequence[tuple[NDArray[Any], NDArray[Any]]], path: Path, options: ReadOptions
) -> float:
    """Return the value that is white in a file, of which all row groups are given."""
    if options.pixel_max is not None:
        return options.pixel_max
    floats = [images for images, _ in parts if images.dtype.kind == "f"]
    return pixel_scale.white_of_floats(floats, path) if floats else pixel_scale.WHITE


def _as_texts(labels: NDArray[Any], where: object) -> NDArray[Any]:
    """Return labels of one of several forms as text, which all of them can be."""
    if labels.ndim > 1:
        raise DataError(f"{where}: one-hot labels beside others; expected one form in all files")
    whole = labels.astype(np.int64) if labels.dtype.kind == "f" else labels
    if labels.dtype.kind == "f" and (whole != labels).any():
        raise DataError(f"{where}: labels that are not whole numbers; expected integers or texts")
    return np.array([str(label) for label in whole], dtype=object)


def _require_sound(paths: Sequence[Path]) -> None:
    """Look at the files' metadata in a process of their own.

    Arrow answers some damage there (a level histogram of another size, say) by ending the process that asks.
    """
    command = [sys.executable, "-I", "-c", _LOOK, *map(os.path.abspath, paths)]
    looked = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)  # noqa: S603
    if looked.returncode < 0:
        seen = looked.stdout.decode(errors="replace").split("\0")
        path = paths[max(len(seen) - 2, 0)]
        raise DataError(
            f"{path}: no readable Parquet (its metadata are damaged); fetch or write it again"
        )


def _row_groups(path: Path, options: ReadOptions) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Images and labels of each row group, as long as what they expand to stays within bounds."""
    room = archives.allowance(archives.require_regular(path))
    with _translated(path):
        names = pq.read_schema(path).names
        wanted = arrow_images.image_column(names, options.image_column, path)
        label = arrow_images.label_column(names, options.label_column, path)
        packed = _byte_columns(path, (wanted, f"{wanted}.bytes", label))
    with _translated(path), pq.ParquetFile(path, read_dictionary=packed) as file:
        schema = file.schema_arrow
        arrow_images.require_labels(schema.field(label).type, path, label)
        image = arrow_images.reader(schema.field(wanted).type, schema.metadata or {}, path, wanted)
        first = 0
        for group in range(file.num_row_groups):
            size = _expanded(file.metadata.row_group(group), image, wanted)
            if not 0 <= size <= room:
                raise DataError(
                    f"{path}: claims to expand to {size} bytes in row group {group}; refused as a bomb"
                )
            table = file.read_row_group(group, columns=[image.column, label])
            labels = arrow_images.labels(table[label], first, path, label)
            images = image.read(table[wanted], first, room, path)
            room -= images.nbytes
            first += table.num_rows
            if len(labels):
                yield images, labels


def _byte_columns(path: Path, names: Sequence[str]) -> list[str]:
    """The columns of bytes and texts: read as dictionaries, one value repeated a million times is held once."""
    schema = pq.read_metadata(path).schema
    leaves = [schema.column(index) for index in range(len(schema))]
    return [
        leaf.path for leaf in leaves if leaf.path in names and leaf.physical_type == "BYTE_ARRAY"
    ]


def _expanded(group: Any, image: arrow_images.Reader, wanted: str) -> int:
    """The bytes that reading a row group takes, from what its metadata claim."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    pixels = [chunk for chunk in chunks if _is_within(chunk.path_in_schema, wanted)]
    values: int = sum(chunk.num_values * image.value_bytes for chunk in pixels)
    pages: int = sum(chunk.total_uncompressed_size for chunk in pixels)
    rows: int = group.num_rows
    return max(values, pages) + rows * _LABEL_BYTES


def _is_within(path: str, column: str) -> bool:
    """Whether a leaf of a schema belongs to a column, whose name may have dots."""
    return path == column or path.startswith(f"{column}.")


def _class_names(path: Path, options: ReadOptions) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata give to the labels; None if there are none."""
    with _translated(path):
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
