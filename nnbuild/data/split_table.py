"""A split as an Arrow table: pixels as bytes, labels, and the columns that were kept."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.data.dataset import Split
from nnbuild.errors import DataError, one_line
from nnbuild.store.schemas import SCHEMA_VERSION

_SHAPE_KEYS = (b"height", b"width", b"channels")
_VERSION_KEY = b"nnbuild.schema_version"
_MAX_DIGITS = 5  # of height, width and channels


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
    shape = shape_in(table.schema, where)
    kept = table.schema.names[2:]
    if table["image"].null_count or table["label"].null_count:
        raise DataError(f"{where}: contains nulls; ingest the data again")
    return Split(
        fixed_pixels(table["image"]).reshape(-1, *shape),
        column_values(table["label"], np.int16),
        table.select(kept) if kept else None,
    )


def shape_in(schema: pa.Schema, where: object) -> tuple[int, int, int]:
    """Return the shape of an image by a schema, which must be that of `split_table`.

    Raises:
        DataError: The schema or its version differs.
    """
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
    return column_values(column, np.uint8, width).reshape(-1, width)


def column_values(column: pa.ChunkedArray, kind: type[np.generic], each: int = 1) -> NDArray[Any]:
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
