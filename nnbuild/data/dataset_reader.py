"""Read datasets from the store, verified by the digests of their files."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.data import archives
from nnbuild.data.dataset import DIGEST_BYTES, Dataset, Digests, Split
from nnbuild.data.dataset_description import (
    DESCRIPTION,
    DIGESTS,
    PART,
    DatasetDescription,
    FileDescription,
    Part,
    PartDescription,
    PartsDescription,
    has_parts,
    read_description,
)
from nnbuild.data.parts import join_parts
from nnbuild.data.pixels import (
    IN_MEMORY,
    PixelWriter,
    Workspace,
    open_map,
    sha256_of,
    write_map,
)
from nnbuild.data.split_table import column_values, fixed_pixels, shape_in, split_from_table
from nnbuild.errors import DataError


def read_test_split(folder: Path, workspace: Workspace = IN_MEMORY) -> Split:
    """Read the test split of a dataset, verified by its digest.

    Args:
        folder: Folder of the dataset.
        workspace: Where the pixels are held.

    Raises:
        DataError: A file is missing or was changed.
    """
    if has_parts(folder):
        return read_dataset(folder, workspace).test
    description = read_description(folder, DatasetDescription)
    return _read_splits(folder, description, {"test": description.test}, workspace)["test"]


def read_dataset(folder: Path, workspace: Workspace = IN_MEMORY) -> Dataset:
    """Read a dataset of `write_dataset` or `write_parts`, and verify every file by its digest.

    Args:
        folder: Folder of the dataset.
        workspace: Where the pixels are held.

    Raises:
        DataError: A file is missing or was changed, or the parts do not match.
        StoreError: The file of the pixels cannot be written.
    """
    if not has_parts(folder):
        return _read_whole(folder, read_description(folder, DatasetDescription), workspace)
    description = read_description(folder, PartsDescription)
    parts = _read_parts(folder.parent, description.parts, workspace)
    return join_parts(parts, name=description.name, source=description.source)


def _read_parts(folder: Path, parts: Sequence[Part], workspace: Workspace) -> list[Dataset]:
    """Read the parts of a dataset; if their pixels do not fit in memory, they share one file."""
    rows = [read_description(folder / part, PartDescription).images.rows for part in parts]
    first = read_part(folder, parts[0], workspace)
    size = sum(rows) * math.prod(first.image_shape)
    if workspace.holds(size):
        return [first, *(read_part(folder, part, workspace) for part in parts[1:])]
    writer = PixelWriter(workspace, expected=size)
    outlines = []
    for part in parts:
        dataset = read_part(folder, part, workspace)
        if dataset.image_shape != first.image_shape:
            return [first, dataset]  # joining them reports the difference
        for split in dataset.splits.values():
            writer.append(split.images)
        outlines.append(_with_images(dataset, lambda images: np.broadcast_to(0, images.shape)))
    images, start = writer.finish(), 0

    def following(outline: NDArray[np.uint8]) -> NDArray[np.uint8]:
        nonlocal start
        start += len(outline)
        return images[start - len(outline) : start]

    return [_with_images(outline, following) for outline in outlines]


def _with_images(
    dataset: Dataset, function: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> Dataset:
    """Return a dataset with other images, made from those of each split in order."""
    splits = {
        name: replace(split, images=function(split.images))
        for name, split in dataset.splits.items()
    }
    return replace(
        dataset,
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
    )


def read_part(folder: Path, part: Part, workspace: Workspace = IN_MEMORY) -> Dataset:
    """Read a part of datasets, which may lack splits, and verify its file by its digest.

    Args:
        folder: Folder of all datasets of that name.
        part: Path of the part, which ends in its digest.
        workspace: Where the pixels are held.

    Raises:
        DataError: A file is missing or was changed.
    """
    path = folder / part
    description = read_description(path, PartDescription)
    if description.digest != path.name or sum(description.rows.values()) != description.images.rows:
        raise DataError(
            f"{path / DESCRIPTION}: does not describe the part of that path; restore it"
        )
    own = replace(workspace, keeps_maps=False)
    images = _read_split(path / PART, description.images, own)
    ends = np.cumsum([0, *description.rows.values()])
    splits = {
        name: images.select(slice(first, last))
        for name, first, last in zip(description.rows, ends[:-1], ends[1:], strict=True)
    }
    nothing = images.select(slice(0))
    return Dataset(
        "part",
        splits.get("train", nothing),
        splits.get("test", nothing),
        description.class_names,
        description.source,
        splits.get("validation"),
        held_out=description.held_out,
    )


def _read_whole(folder: Path, description: DatasetDescription, workspace: Workspace) -> Dataset:
    splits = _read_splits(folder, description, description.splits(), workspace)
    return Dataset(
        description.name,
        splits["train"],
        splits["test"],
        description.class_names,
        description.source,
        splits.get("validation"),
        held_out=description.held_out,
    )


def _read_splits(
    folder: Path,
    description: DatasetDescription,
    files: Mapping[str, FileDescription],
    workspace: Workspace,
) -> dict[str, Split]:
    """Read some splits of a dataset, which are all in memory or all mapped."""
    shape = (description.height, description.width, description.channels)
    size = sum(file.rows for file in files.values()) * math.prod(shape)
    in_memory = workspace.holds(size)
    splits: dict[str, Split] = {}
    for name, file in files.items():
        path = folder / f"{name}.parquet"
        split = _read_split(path, file) if in_memory else _map_split(path, file, workspace)
        if split.images.shape[1:] != shape:
            raise DataError(
                f"{folder}: {name} images have shape {split.images.shape[1:]}, "
                f"expected {shape} by {DESCRIPTION}"
            )
        splits[name] = split
    return splits


def _read_split(path: Path, expected: FileDescription, workspace: Workspace = IN_MEMORY) -> Split:
    """Read a split, which is mapped if the workspace does not hold its file or its pixels."""
    if not workspace.holds(expected.bytes):
        return _map_split(path, expected, workspace)
    _require_size(path, expected)
    with archives.open_regular(path) as file, archives.read_errors_as_data_errors(path):
        payload = file.read()
    _require_digest(path, expected, hashlib.sha256(payload).hexdigest())
    # pq.read_table would import pyarrow.dataset, and that pandas, which takes a second.
    with _parquet_errors(path), pq.ParquetFile(pa.BufferReader(payload)) as source:
        shape = shape_in(source.schema_arrow, path)
        if not workspace.holds(expected.rows * math.prod(shape)):
            return _stream_split(source, path, expected, workspace)
        return _of_rows(split_from_table(source.read(), path), path, expected)


def _map_split(path: Path, expected: FileDescription, workspace: Workspace) -> Split:
    """Read a split whose pixels do not fit in memory: they are copied to a mapped file.

    Both files are verified: the Parquet file by the digest in dataset.json, and the file of the
    pixels by the digest that it had when it was written.
    """
    _require_size(path, expected)
    with archives.open_regular(path) as file, archives.read_errors_as_data_errors(path):
        digest = sha256_of(file)
    _require_digest(path, expected, digest)
    with _parquet_errors(path), pq.ParquetFile(path) as source:
        return _stream_split(source, path, expected, workspace)


def _stream_split(
    source: pq.ParquetFile, path: Path, expected: FileDescription, workspace: Workspace
) -> Split:
    """Read a split, whose pixels are mapped, from a verified file."""
    shape = shape_in(source.schema_arrow, path)
    names = [name for name in source.schema_arrow.names if name != "image"]
    others = source.read(columns=names)
    batches = (
        fixed_pixels(source.read_row_group(number, ["image"])["image"]).reshape(-1, *shape)
        for number in range(source.num_row_groups)
    )
    images = _map_images(batches, expected, workspace)
    if others["label"].null_count:
        raise DataError(f"{path}: contains nulls; ingest the data again")
    labels = column_values(others["label"], np.int16)
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images, {len(labels)} labels; ingest again")
    kept = others.drop_columns("label") if len(names) > 1 else None
    return _of_rows(Split(images, labels, kept), path, expected)


def _of_rows(split: Split, path: Path, expected: FileDescription) -> Split:
    """Return a split, or refuse it because it has another number of images than it should."""
    if len(split) != expected.rows:
        raise DataError(
            f"{path}: {len(split)} rows, expected {expected.rows} by {DESCRIPTION}; "
            "ingest the data again"
        )
    return split


def _map_images(
    batches: Iterator[NDArray[np.uint8]], expected: FileDescription, workspace: Workspace
) -> NDArray[np.uint8]:
    """Return images in a file of their own: the one that is kept, if it is intact, or a new one."""
    if workspace.keeps_maps:
        kept = open_map(workspace, expected.sha256)
        return write_map(workspace, expected.sha256, batches) if kept is None else kept
    # Always in a file: the writer would decide by the pixels of this split alone.
    writer = PixelWriter(replace(workspace, limit=0))
    for batch in batches:
        writer.append(batch)
    return writer.finish()


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The content of a dataset, as digests that depend neither on its files nor on their format.

    Attributes:
        image_shape: Height, width and channels of the images.
        class_names: Name of each class, in the order of the labels.
        test_set: SHA-256 of pixels and labels of the test split, in their order.
        images: Digest of each image by split, see `Split.image_digests`.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    test_set: str
    images: Mapping[str, Digests]

    @property
    def seen(self) -> Digests:
        """Return the digests of the images that a run on the dataset trains or validates on."""
        return np.concatenate([each for name, each in self.images.items() if name != "test"])


def fingerprint(folder: Path, workspace: Workspace = IN_MEMORY) -> Fingerprint:
    """Read the digests of a dataset of `write_dataset`.

    They take milliseconds to read. Those of a dataset that consists of parts, or that version 0.1
    wrote, are computed from its images.

    Args:
        folder: Folder of the dataset.
        workspace: Where the pixels are held for that.

    Raises:
        DataError: A file is missing or was changed.
    """
    if not has_parts(folder):
        description = read_description(folder, DatasetDescription)
        files = description.splits()
        if all(each.content and each.image_digests for each in files.values()):
            shape = (description.height, description.width, description.channels)
            images = {name: _read_digests(folder / name, file) for name, file in files.items()}
            test_set = str(files["test"].content)
            return Fingerprint(shape, description.class_names, test_set, images)
    dataset = read_dataset(folder, workspace)
    images = {name: split.image_digests for name, split in dataset.splits.items()}
    test_set = dataset.test.content_digest
    return Fingerprint(dataset.image_shape, dataset.class_names, test_set, images)


def _read_digests(stem: Path, file: FileDescription) -> Digests:
    path = stem.with_suffix(DIGESTS)
    archives.require_regular(path)
    with archives.open_regular(path) as source, archives.read_errors_as_data_errors(path):
        payload = source.read(file.rows * DIGEST_BYTES + 1)
    if hashlib.sha256(payload).hexdigest() != file.image_digests:
        raise DataError(
            f"{path}: its SHA-256 differs from the one in {DESCRIPTION}; restore it from a copy"
        )
    return np.frombuffer(payload, f"S{DIGEST_BYTES}")


def _require_size(path: Path, expected: FileDescription) -> None:
    size = archives.require_regular(path)
    if size != expected.bytes:
        raise DataError(
            f"{path}: {size} bytes, expected {expected.bytes} by {DESCRIPTION}; "
            "ingest the data again"
        )


def _require_digest(path: Path, expected: FileDescription, digest: str) -> None:
    if digest != expected.sha256:
        raise DataError(
            f"{path}: SHA-256 {digest}, expected {expected.sha256} by {DESCRIPTION}; "
            "ingest the data again"
        )


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not readable as Parquet ({archives.reason_of(error)}); ingest the data again"
        ) from error
