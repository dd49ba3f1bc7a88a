"""Parquet with a column `image`, in any of the usual forms, and a column `label`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.data import archives, columns
from nnbuild.data.arrays import Raw, assemble, slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.splits import assemble_held_out
from nnbuild.errors import DataError

_IMAGE, _LABEL = "image", "label"
_BYTES = (_IMAGE, f"{_IMAGE}.bytes")
_LABEL_BYTES = 8  # the widest integer
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


def load_file(path: Path) -> Dataset:
    """A dataset from one Parquet file; a sixth of each class is held out for testing.

    Raises:
        DataError: see `load_folder`.
    """
    images, labels = _read([path])
    names = _class_names(path)
    return assemble_held_out(
        images, labels, name=slug(path), source=str(path), where=path, class_names=names
    )


def load_folder(path: Path) -> Dataset:
    """A dataset from train*.parquet and test*.parquet; without test files a sixth of each class is held out.

    Column `image` is fixed_size_binary, a list of numbers (also nested), a fixed-shape tensor, or PNG bytes,
    alone or in a struct with `bytes`, as Hugging Face writes them. Pixels without a shape are taken as a grey
    square, unless the schema's metadata give height, width and channels. Column `label` holds integers.

    Raises:
        DataError: a file is damaged, lacks a column, holds nulls or images of several sizes, or none is a
            train file.
    """
    train, test = (_files(path, split) for split in ("train", "test"))
    if not train:
        raise DataError(f"{path}: no train*.parquet; expected train*.parquet and test*.parquet")
    images, labels = _read(train)
    names = _class_names(train[0])
    if not test:
        return assemble_held_out(
            images, labels, name=slug(path), source=str(path), where=path, class_names=names
        )
    raw = Raw(images, labels, *_read(test))
    return assemble(raw, name=slug(path), source=str(path), where=path, class_names=names)


def _files(folder: Path, split: str) -> list[Path]:
    with archives.translated(folder):
        files = sorted(folder.glob(f"{split}*.parquet"))
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{file}: a link that leads out of {folder}; put the file itself there")
    return files


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
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: no readable Parquet ({reason}); fetch or write it again"
        ) from error


def _read(paths: Sequence[Path]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images and labels of several files, one after the other."""
    _require_sound(paths)
    parts = [part for path in paths for part in _row_groups(path)]
    if not parts:
        raise DataError(f"{paths[0]}: holds no rows; expected images")
    shapes = sorted({images.shape[1:] for images, _ in parts})
    if len(shapes) > 1:
        raise DataError(
            f"{paths[0].parent}: images of shapes {shapes[0]} and {shapes[1]}; expected one"
        )
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([images for images, _ in parts]), np.concatenate(
        [labels for _, labels in parts]
    )


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


def _row_groups(path: Path) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Images and labels of each row group, as long as what they expand to stays within bounds."""
    room = archives.allowance(archives.require_regular(path))
    with _translated(path), pq.ParquetFile(path, read_dictionary=_byte_columns(path)) as file:
        schema = file.schema_arrow
        if missing := [name for name in (_IMAGE, _LABEL) if name not in schema.names]:
            held = ", ".join(schema.names[:20])
            raise DataError(
                f"{path}: no column {missing[0]!r} among {held}; expected {_IMAGE!r} and {_LABEL!r}"
            )
        columns.require_labels(schema.field(_LABEL).type, path)
        image = columns.reader(schema.field(_IMAGE).type, schema.metadata or {}, path)
        first = 0
        for group in range(file.num_row_groups):
            size = _expanded(file.metadata.row_group(group), image)
            if not 0 <= size <= room:
                raise DataError(
                    f"{path}: claims to expand to {size} bytes in row group {group}; refused as a bomb"
                )
            table = file.read_row_group(group, columns=[image.column, _LABEL])
            labels = columns.labels(table[_LABEL], first, path)
            images = image.read(table[_IMAGE], first, room, path)
            room -= images.nbytes
            first += table.num_rows
            if len(labels):
                yield images, labels


def _byte_columns(path: Path) -> list[str]:
    """The columns of PNG bytes: read as dictionaries, a picture repeated a million times is held once."""
    schema = pq.read_metadata(path).schema
    leaves = [schema.column(index) for index in range(len(schema))]
    return [
        leaf.path for leaf in leaves if leaf.path in _BYTES and leaf.physical_type == "BYTE_ARRAY"
    ]


def _expanded(group: Any, image: columns.Reader) -> int:
    """The bytes that reading a row group takes, from what its metadata claim."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    pixels = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == _IMAGE]
    values: int = sum(chunk.num_values * image.value_bytes for chunk in pixels)
    pages: int = sum(chunk.total_uncompressed_size for chunk in pixels)
    rows: int = group.num_rows
    return max(values, pages) + rows * _LABEL_BYTES


def _class_names(path: Path) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata give to the labels; None if there are none."""
    with _translated(path):
        text = (pq.read_schema(path).metadata or {}).get(b"huggingface", b"null")
        try:
            names = json.loads(text)["info"]["features"][_LABEL]["names"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
    return (
        tuple(names)
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
        else None
    )
