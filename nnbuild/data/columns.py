"""Arrow columns of images and of labels, as arrays: one reader for each form that images may have."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nnbuild.data import pictures
from nnbuild.data.tables import fixed_pixels, image_shape
from nnbuild.errors import DataError

_WHITE = 255


class Reader(ABC):
    """Makes arrays of one form of image column.

    Attributes:
        column: what to read from the file.
        value_bytes: memory that one value of the file takes.
    """

    column = "image"
    value_bytes = 1

    @abstractmethod
    def read(self, column: Any, first: int, room: int, where: object) -> NDArray[Any]:
        """Images of shape (n, height, width) or (n, height, width, channels).

        Args:
            column: the column of one row group.
            first: the number of its first row in the file, for messages.
            room: the most bytes that the images may take.
            where: what a message should name.

        Raises:
            DataError: nulls, images of several sizes, or pixels without a shape.
        """


def reader(kind: Any, metadata: Mapping[bytes, bytes], where: object) -> Reader:
    """The reader for a column's type.

    Args:
        kind: the Arrow type of column `image`.
        metadata: the schema's, which may give height, width and channels.
        where: what a message should name.

    Raises:
        DataError: a type that cannot hold images.
    """
    shape = image_shape(metadata, where) if b"height" in metadata else None
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.permutation not in (None, list(range(len(kind.shape)))):
            raise DataError(
                f"{where}: tensors in the order {kind.permutation}; expected height, width, channels"
            )
        return _Lists(tuple(kind.shape), math.prod(kind.shape) and kind.value_type.bit_width // 8)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_fixed_size_binary(kind):
        return _Fixed(_shape(kind.byte_width, shape, where), kind.byte_width)
    if _is_list(kind):
        while _is_list(kind):
            kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _Lists(shape, kind.bit_width // 8)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _Pictures("image.bytes")
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _Pictures("image")
    raise DataError(
        f"{where}: column 'image' is {kind}; expected fixed_size_binary, lists of numbers, or PNG bytes"
    )


def require_labels(kind: Any, where: object) -> None:
    """Refuse a column of labels by its type, before it is read.

    Raises:
        DataError: no integers.
    """
    if not pa.types.is_integer(kind):
        raise DataError(
            f"{where}: column 'label' is {kind}; expected integers from 0: number the classes"
        )


def labels(column: Any, first: int, where: object) -> NDArray[Any]:
    """Labels of any integer type, shape (n,).

    Raises:
        DataError: nulls.
    """
    _require_values(column, "label", first, where)
    return np.asarray(column.to_numpy())


@dataclass(frozen=True)
class _Fixed(Reader):
    shape: tuple[int, ...]
    value_bytes: int

    def read(self, column: Any, first: int, room: int, where: object) -> NDArray[Any]:  # noqa: ARG002
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        _require_values(column, "image", first, where)
        return np.asarray(fixed_pixels(column).reshape(-1, *self.shape))


@dataclass(frozen=True)
class _Lists(Reader):
    shape: tuple[int, ...] | None
    value_bytes: int

    def read(self, column: Any, first: int, room: int, where: object) -> NDArray[Any]:  # noqa: ARG002
        _require_values(column, "image", first, where)
        values = _one(column)
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        count, sizes = len(values), []
        while _is_list(values.type):
            sizes.append(_only_length(values, first, where))
            values = values.flatten()
            if values.null_count:
                raise DataError(f"{where}: nulls inside the lists of column 'image'; expected none")
        shape = self.shape if self.shape or len(sizes) > 1 else _shape(sizes[0], None, where)
        shape = shape or tuple(sizes)
        if math.prod(shape) != math.prod(sizes):
            raise DataError(
                f"{where}: images of {math.prod(sizes)} numbers, their shape is said to be {shape}"
            )
        return _narrow(np.asarray(values.to_numpy(zero_copy_only=False))).reshape(count, *shape)


@dataclass(frozen=True)
class _Pictures(Reader):
    column: str

    def read(self, column: Any, first: int, room: int, where: object) -> NDArray[Any]:
        _require_values(column, "image", first, where)
        packed = _one(column)
        if pa.types.is_struct(packed.type):
            packed = packed.field("bytes")
            _require_values(packed, "image.bytes", first, where)
        images: list[NDArray[np.uint8]] = []
        with pictures.strict():
            for row, payload in enumerate(packed, first):
                images.append(pictures.decode(payload.as_py(), f"{where}, row {row}"))
                if images[-1].shape != images[0].shape:
                    sizes = f"{images[-1].shape}, row {first} has {images[0].shape}"
                    raise DataError(
                        f"{where}, row {row}: height, width, channels {sizes}; expected one size"
                    )
                if len(images) * images[0].nbytes > room:
                    raise DataError(
                        f"{where}, row {row}: pictures that expand beyond {room} bytes; refused as a bomb"
                    )
        return np.stack(images) if images else np.empty((0, 1, 1, 1), np.uint8)


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Integers that are pixels as uint8, an eighth of what Python's lists of integers become in Arrow."""
    if values.dtype.kind in "iu" and len(values) and values.min() >= 0 and values.max() <= _WHITE:
        return values.astype(np.uint8)
    return values


def _shape(size: int, given: tuple[int, ...] | None, where: object) -> tuple[int, ...]:
    """The given shape, which must have `size` values; without one, a grey square."""
    side = math.isqrt(size)
    shape = given or (side, side, 1)
    if math.prod(shape) != size or not size:
        claim = (
            f"metadata say {given}"
            if given
            else "that is no square, and its metadata give no shape"
        )
        raise DataError(
            f"{where}: images of {size} values, {claim}; expected metadata height, width and channels"
        )
    return shape


def _is_list(kind: Any) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _one(column: Any) -> Any:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _only_length(lists: Any, first: int, where: object) -> int:
    if pa.types.is_fixed_size_list(lists.type):
        return int(lists.type.list_size)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if len(lengths) == 0:
        return 0
    if (lengths != lengths[0]).any():
        row = first + int(np.flatnonzero(lengths != lengths[0])[0])
        raise DataError(
            f"{where}: lists of different lengths in column 'image' (first near row {row}); expected one size"
        )
    return int(lengths[0])


def _require_values(column: Any, name: str, first: int, where: object) -> None:
    if column.null_count:
        rows = np.flatnonzero(np.asarray(column.is_null()))
        shown = ", ".join(str(first + row) for row in rows[:5])
        raise DataError(
            f"{where}: {len(rows)} null(s) in column {name!r}, rows {shown}; expected none"
        )
