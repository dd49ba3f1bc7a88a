"""Datasets in the store: for each split a Parquet file and the digests of its images.

`dataset.json` describes them, with the digests of the files. Or it is alone, and lists the parts of
the dataset: the days of a dated source, each stored once for all datasets that have it.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from nnbuild.data import archives, pixels
from nnbuild.data.dataset import DIGEST_BYTES, Dataset, Digests, Split
from nnbuild.data.labels import MAX_CLASSES
from nnbuild.data.parts import join_parts
from nnbuild.data.pixels import (
    IN_MEMORY,
    PixelWriter,
    Workspace,
    open_map,
    sha256_of,
    write_map,
)
from nnbuild.errors import DataError, one_line
from nnbuild.store.schemas import SCHEMA_VERSION

DESCRIPTION = "dataset.json"
_DIGESTS = ".digests"
_PART = "images.parquet"
_PART_LEVEL = 9  # of zstd: MNIST's images take 6 % less than at the default, 40 ms for 1,000
_SHAPE_KEYS = (b"height", b"width", b"channels")
_VERSION_KEY = b"nnbuild.schema_version"
_ROW_GROUP = 16384
_GROUP_BYTES = 64 << 20  # of pixels in a row group, which is read at once
_MAX_JSON = 1 << 20
_MAX_DIGITS = 5  # of height, width and channels

D = TypeVar("D", bound=BaseModel)
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _File(BaseModel):
    """The Parquet file of a split.

    Attributes:
        content: SHA-256 of pixels and labels, see `Split.content_digest`.
        image_digests: SHA-256 of the file with the digests of the images, see
            `Split.image_digests`. Datasets that version 0.1 wrote have neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: PositiveInt
    bytes: PositiveInt
    sha256: Sha256
    content: Sha256 | None = None
    image_digests: Sha256 | None = None


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str
    name: Annotated[str, Field(pattern="^[a-z0-9.-]+$")]
    digest: Sha256
    height: PositiveInt
    width: PositiveInt
    channels: PositiveInt
    class_names: Annotated[tuple[str, ...], Field(min_length=2, max_length=MAX_CLASSES)]
    source: str
    train: _File
    test: _File
    validation: _File | None = None
    held_out: bool = False

    def splits(self) -> dict[str, _File]:
        """Return the file of each split by its name."""
        files = {"train": self.train, "test": self.test}
        return files if self.validation is None else files | {"validation": self.validation}


Part = Annotated[str, Field(pattern="^days/[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9a-f]{64}$")]
"""A day that is a part of datasets: its folder, relative to the folder of all datasets of that
name. The last component is the digest of its content, see `Dataset.digest`."""


class _PartDescription(BaseModel):
    """The only Parquet file of a part, with the splits one after another.

    Attributes:
        rows: Number of images in each split that the part has, in their order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str
    digest: Sha256
    class_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    source: str
    held_out: bool
    rows: dict[Literal["train", "test", "validation"], NonNegativeInt]
    images: _File


class _PartsDescription(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str
    name: Annotated[str, Field(pattern="^[a-z0-9.-]+$")]
    digest: Sha256
    source: str
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


def split_table(split: Split) -> pa.Table:
    """Convert a split to an Arrow table, without copying its pixels.

    Returns:
        Table with the columns `image` (fixed_size_binary of height x width x channels bytes, in
        row-major order, channels last), `label` (int16), and the kept columns (string). The
        metadata of the schema contain height, width, channels and nnbuild.schema_version.
    """
    count, *shape = split.images.shape
    image = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(int(np.prod(shape))),
        count,
        [None, pa.py_buffer(np.ascontiguousarray(split.images))],
    )
    metadata = dict(zip(_SHAPE_KEYS, (str(size).encode() for size in shape), strict=True))
    schema = pa.schema(
        [
            pa.field(
                "image",
                image.type,
                nullable=False,
                metadata={"description": "Pixels, 0 to 255, row by row"},
            ),
            pa.field(
                "label", pa.int16(), nullable=False, metadata={"description": "True class, from 0"}
            ),
        ],
        metadata={**metadata, _VERSION_KEY: SCHEMA_VERSION.encode()},
    )
    # `pa.array` would import pandas, which takes a second.
    labels = pa.py_buffer(np.ascontiguousarray(split.labels, np.int16))
    label = pa.Array.from_buffers(pa.int16(), count, [None, labels])
    kept = [] if split.kept is None else split.kept.schema
    columns = [] if split.kept is None else split.kept.columns
    schema = pa.schema([*schema, *kept], metadata=schema.metadata)
    return pa.Table.from_arrays([image, label, *columns], schema=schema)


def split_from_table(table: pa.Table, where: object = "table") -> Split:
    """Return the split in a table of `split_table`; its arrays may be read-only views.

    Raises:
        DataError: The schema or its version differs, or there are nulls.
    """
    shape = _shape_in(table.schema, where)
    kept = table.schema.names[2:]
    if table["image"].null_count or table["label"].null_count:
        raise DataError(f"{where}: contains nulls; ingest the data again")
    return Split(
        fixed_pixels(table["image"]).reshape(-1, *shape),
        _values(table["label"], np.int16),
        table.select(kept) if kept else None,
    )


def _shape_in(schema: pa.Schema, where: object) -> tuple[int, int, int]:
    """Return the shape of an image by a schema, which must be that of `split_table`."""
    metadata = schema.metadata or {}
    version = one_line(metadata.get(_VERSION_KEY, b"none").decode(errors="replace"))
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{where}: schema version {version}, expected {SCHEMA_VERSION}; ingest the data again"
        )
    shape = image_shape(metadata, where)
    kinds = [(field.name, field.type) for field in schema]
    own, kept = kinds[:2], kinds[2:]
    expected = [("image", pa.binary(math.prod(shape))), ("label", pa.int16())]
    if own != expected or any(kind != pa.string() for _, kind in kept):
        raise DataError(
            f"{where}: columns {kinds}; expected image of {math.prod(shape)} bytes, label of "
            "int16, and texts"
        )
    return shape


def image_shape(metadata: Any, where: object) -> tuple[int, int, int]:
    """Return height, width and channels from the metadata of a schema.

    Raises:
        DataError: They are missing or not positive integers.
    """
    sizes = [metadata.get(key, b"").decode(errors="replace") for key in _SHAPE_KEYS]
    if not all(map(_is_size, sizes)):
        raise DataError(
            f"{where}: height, width, channels are {sizes} in the metadata; "
            "expected three integers above 0"
        )
    height, width, channels = map(int, sizes)
    return height, width, channels


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) > 0


def fixed_pixels(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Return the bytes of a fixed_size_binary column without nulls, uint8, shape (n, size)."""
    width = column.type.byte_width
    return _values(column, np.uint8, width).reshape(-1, width)


def _values(column: pa.ChunkedArray, kind: type[np.generic], each: int = 1) -> NDArray[Any]:
    """Return the memory of a column as a flat array.

    Args:
        column: Column of a fixed-width type, without nulls.
        kind: Type of the values.
        each: Number of values in a row.
    """
    # Arrow's to_numpy would import pandas, which takes a second.
    parts = [
        np.frombuffer(chunk.buffers()[1] or b"", kind)[
            chunk.offset * each : (chunk.offset + len(chunk)) * each
        ]
        for chunk in column.chunks
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write the files of each split and dataset.json durably.

    Args:
        dataset: Dataset to write.
        folder: Folder to create and fill; the caller moves it into place. dataset.json is written
            last, so an incomplete folder has none.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    height, width, channels = dataset.image_shape
    description = _Description(
        schema_version=SCHEMA_VERSION,
        name=dataset.name,
        digest=dataset.digest,
        height=height,
        width=width,
        channels=channels,
        class_names=dataset.class_names,
        source=dataset.source,
        held_out=dataset.held_out,
        **{
            name: _with_digests(_write_split(split, path), split, path)
            for name, split in dataset.splits.items()
            for path in [folder / f"{name}.parquet"]
        },
    )
    _write_description(folder, description)


def _write_description(folder: Path, description: BaseModel, indent: int | None = 2) -> None:
    text = description.model_dump_json(indent=indent, exclude_none=True) + "\n"
    _write_durably(folder / DESCRIPTION, text.encode())
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_part(dataset: Dataset, folder: Path) -> None:
    """Write a part of datasets durably; it may lack splits, and have a single class.

    A store gets a part every night, so parts are small: one well compressed Parquet file, without
    the digests of the images.

    Args:
        dataset: The images of the part.
        folder: Folder to create and fill, as for `write_dataset`.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = dataset.splits
    kept = [split.kept for split in splits.values() if split.kept is not None]
    images = Split(
        pixels.concatenate([split.images for split in splits.values()]),
        np.concatenate([split.labels for split in splits.values()]),
        pa.concat_tables(kept) if kept else None,
    )
    description = _PartDescription(
        schema_version=SCHEMA_VERSION,
        digest=dataset.digest,
        class_names=dataset.class_names,
        source=dataset.source,
        held_out=dataset.held_out,
        rows={name: len(split) for name, split in splits.items()},
        images=_write_split(images, folder / _PART, compression_level=_PART_LEVEL),
    )
    _write_description(folder, description, indent=None)


def write_parts(folder: Path, *, name: str, source: str, parts: Sequence[Part]) -> str:
    """Write the dataset.json of a dataset that consists of parts.

    Args:
        folder: Folder to create and fill, next to those of the parts.
        name: Name of the dataset.
        source: Description of its origin.
        parts: The parts, in order.

    Returns:
        Digest of the dataset, which is that of the list of its parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = digest_of_parts(parts)
    description = _PartsDescription(
        schema_version=SCHEMA_VERSION, name=name, digest=digest, source=source, parts=tuple(parts)
    )
    _write_description(folder, description, indent=None)
    return digest


def digest_of_parts(parts: Sequence[Part]) -> str:
    """Return the SHA-256 of a list of parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write_split(split: Split, path: Path, *, compression_level: int | None = None) -> _File:
    each = max(1, split.images[:1].nbytes)
    with path.open("wb") as file:
        sink = _DigestedFile(file)
        # Pixels rarely repeat: a dictionary would cost time and save nothing.
        pq.write_table(
            split_table(split),
            sink,
            compression="zstd",
            compression_level=compression_level,
            use_dictionary=False,
            write_statistics=["label"],
            row_group_size=max(1, min(_ROW_GROUP, _GROUP_BYTES // each)),
        )
        file.flush()
        os.fsync(file.fileno())
    return _File(rows=len(split), bytes=sink.size, sha256=sink.digest.hexdigest())


class _DigestedFile(io.RawIOBase):
    """A file to write to, with the digest of what was written.

    Attributes:
        size: Number of bytes so far.
        digest: Their SHA-256.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.size, self.digest = 0, hashlib.sha256()

    def writable(self) -> bool:
        """Return whether the file can be written to."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self.size

    def write(self, payload: Any) -> int:
        """Write bytes and add them to the digest."""
        self._file.write(payload)
        self.digest.update(payload)
        count = memoryview(payload).nbytes
        self.size += count
        return count


def _with_digests(file: _File, split: Split, path: Path) -> _File:
    """Write the digests of the images of a split, and add what identifies it to its file."""
    digests = split.image_digests.tobytes()
    _write_durably(path.with_suffix(_DIGESTS), digests)
    identity = {
        "content": split.content_digest,
        "image_digests": hashlib.sha256(digests).hexdigest(),
    }
    return file.model_copy(update=identity)


def _write_durably(path: Path, payload: Any) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def read_test_split(folder: Path, workspace: Workspace = IN_MEMORY) -> Split:
    """Read the test split of a dataset, verified by its digest.

    Args:
        folder: Folder of the dataset.
        workspace: Where the pixels are held.

    Raises:
        DataError: A file is missing or was changed.
    """
    if _has_parts(folder):
        return read_dataset(folder, workspace).test
    description = _read_description(folder, _Description)
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
    if not _has_parts(folder):
        return _read_whole(folder, _read_description(folder, _Description), workspace)
    description = _read_description(folder, _PartsDescription)
    parts = _read_parts(folder.parent, description.parts, workspace)
    return join_parts(parts, name=description.name, source=description.source)


def _read_parts(folder: Path, parts: Sequence[Part], workspace: Workspace) -> list[Dataset]:
    """Read parts of one dataset, whose pixels are in one file if memory does not hold them."""
    rows = [_read_description(folder / part, _PartDescription).images.rows for part in parts]
    first = read_part(folder, parts[0], workspace)
    size = sum(rows) * math.prod(first.image_shape)
    if workspace.holds(size):
        return [first, *(read_part(folder, part, workspace) for part in parts[1:])]
    writer = PixelWriter(workspace, expected=size)
    outlines = []
    for part in parts:
        dataset = read_part(folder, part, workspace)
        if dataset.image_shape != first.image_shape:
            return [first, dataset]  # which cannot be joined
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
    description = _read_description(path, _PartDescription)
    if description.digest != path.name or sum(description.rows.values()) != description.images.rows:
        raise DataError(
            f"{path / DESCRIPTION}: does not describe the part of that path; restore it"
        )
    own = replace(workspace, keeps_maps=False)
    images = _read_split(path / _PART, description.images, own)
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


def _read_whole(folder: Path, description: _Description, workspace: Workspace) -> Dataset:
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
    folder: Path, description: _Description, files: Mapping[str, _File], workspace: Workspace
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
    if not _has_parts(folder):
        description = _read_description(folder, _Description)
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


def _read_digests(stem: Path, file: _File) -> Digests:
    path = stem.with_suffix(_DIGESTS)
    archives.require_regular(path)
    with archives.open_regular(path) as source, archives.read_errors_as_data_errors(path):
        payload = source.read(file.rows * DIGEST_BYTES + 1)
    if hashlib.sha256(payload).hexdigest() != file.image_digests:
        raise DataError(
            f"{path}: its SHA-256 differs from the one in {DESCRIPTION}; restore it from a copy"
        )
    return np.frombuffer(payload, f"S{DIGEST_BYTES}")


def _has_parts(folder: Path) -> bool:
    value = _read_json(folder / DESCRIPTION)
    return isinstance(value, dict) and "parts" in value


def _read_json(path: Path) -> Any:
    if archives.require_regular(path) > _MAX_JSON:
        raise DataError(
            f"{path}: larger than {_MAX_JSON} bytes; it is not a description of a dataset"
        )
    with archives.open_regular(path) as file, archives.read_errors_as_data_errors(path):
        text = file.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: invalid JSON; ingest the data again") from error


def _read_description(folder: Path, kind: type[D]) -> D:
    path = folder / DESCRIPTION
    try:
        description = kind.model_validate(_read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = one_line(".".join(map(str, first["loc"])))
        raise DataError(f"{path}: {key}: {first['msg']}; ingest the data again") from error
    version = getattr(description, "schema_version", None)
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {one_line(version)}, expected {SCHEMA_VERSION}; ingest again"
        )
    return description


def _map_split(path: Path, expected: _File, workspace: Workspace) -> Split:
    """Read a split whose pixels memory does not hold, through a file of its pixels.

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
    source: pq.ParquetFile, path: Path, expected: _File, workspace: Workspace
) -> Split:
    """Read a split, whose pixels are mapped, from a verified file."""
    shape = _shape_in(source.schema_arrow, path)
    names = [name for name in source.schema_arrow.names if name != "image"]
    others = source.read(columns=names)
    batches = (
        fixed_pixels(source.read_row_group(number, ["image"])["image"]).reshape(-1, *shape)
        for number in range(source.num_row_groups)
    )
    images = _map_images(batches, expected, workspace)
    if others["label"].null_count:
        raise DataError(f"{path}: contains nulls; ingest the data again")
    labels = _values(others["label"], np.int16)
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images, {len(labels)} labels; ingest again")
    kept = others.drop_columns("label") if len(names) > 1 else None
    return _of_rows(Split(images, labels, kept), path, expected)


def _of_rows(split: Split, path: Path, expected: _File) -> Split:
    """Return a split, or refuse it because it has another number of images than it should."""
    if len(split) != expected.rows:
        raise DataError(
            f"{path}: {len(split)} rows, expected {expected.rows} by {DESCRIPTION}; "
            "ingest the data again"
        )
    return split


def _map_images(
    batches: Iterator[NDArray[np.uint8]], expected: _File, workspace: Workspace
) -> NDArray[np.uint8]:
    """Return images in a file of their own: the one that is kept, if it is intact, or a new one."""
    if workspace.keeps_maps:
        kept = open_map(workspace, expected.sha256)
        return write_map(workspace, expected.sha256, batches) if kept is None else kept
    # Its own measure would count the pixels of this split alone.
    writer = PixelWriter(replace(workspace, limit=0))
    for batch in batches:
        writer.append(batch)
    return writer.finish()


def _require_size(path: Path, expected: _File) -> None:
    size = archives.require_regular(path)
    if size != expected.bytes:
        raise DataError(
            f"{path}: {size} bytes, expected {expected.bytes} by {DESCRIPTION}; "
            "ingest the data again"
        )


def _require_digest(path: Path, expected: _File, digest: str) -> None:
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


def _read_split(path: Path, expected: _File, workspace: Workspace = IN_MEMORY) -> Split:
    """Read a split, which is mapped if the workspace does not hold its file or its pixels."""
    if not workspace.holds(expected.bytes):
        return _map_split(path, expected, workspace)
    _require_size(path, expected)
    with archives.open_regular(path) as file, archives.read_errors_as_data_errors(path):
        payload = file.read()
    _require_digest(path, expected, hashlib.sha256(payload).hexdigest())
    # pq.read_table would import pyarrow.dataset, and that pandas, which takes a second.
    with _parquet_errors(path), pq.ParquetFile(pa.BufferReader(payload)) as source:
        shape = _shape_in(source.schema_arrow, path)
        if not workspace.holds(expected.rows * math.prod(shape)):
            return _stream_split(source, path, expected, workspace)
        return _of_rows(split_from_table(source.read(), path), path, expected)
