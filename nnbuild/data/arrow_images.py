"""Convert Arrow columns of images and labels to arrays, with a reader for each image format."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nnbuild.data.preprocessing import ONE_SHAPE, PictureReader
from nnbuild.data.split_table import fixed_pixels, image_shape
from nnbuild.errors import DataError, suggestion

_WHITE = 255
IMAGE_NAMES = ("image", "img", "images")
_LABEL_NAMES = ("label", "labels", "fine_label", "target")


def image_column(names: Sequence[str], requested: str | None, where: object) -> str:
    """Return the name of the column with the images.

    Args:
        names: Names of all columns.
        requested: Name from the settings; None to look for the usual names.
        where: Path or address for error messages.

    Raises:
        DataError: There is no such column.
    """
    return _column(names, requested, IMAGE_NAMES, "image_column", where)


def label_column(names: Sequence[str], requested: str | None, where: object) -> str:
    """Return the name of the column with the labels; see `image_column`."""
    return _column(names, requested, _LABEL_NAMES, "label_column", where)


def _column(
    names: Sequence[str], requested: str | None, usual: Sequence[str], setting: str, where: object
) -> str:
    if requested is not None and requested not in names:
        raise DataError(f"{where}: no column {requested!r}; {suggestion(requested, names)}")
    name = requested or next((name for name in usual if name in names), None)
    if name is None:
        raise DataError(
            f"{where}: no column {usual[0]!r} among {', '.join(names[:20])}; "
            f"expected {' or '.join(map(repr, usual))}, or set {setting} to its name"
        )
    require_single(names, name, where)
    return name


def require_single(names: Sequence[str], name: str, where: object) -> None:
    """Refuse a file with two columns of the same name.

    Raises:
        DataError: There are two columns of this name.
    """
    if names.count(name) > 1:
        raise DataError(f"{where}: two columns are called {name!r}; rename one of them")


class Reader(ABC):
    """Reader of an image column of one format.

    Attributes:
        column: Name of the column, or of its part, to read from the file.
        value_bytes: Bytes of memory for each value in the file.
        reading_factor: Memory that reading takes, as a multiple of that of the values.
        is_float: Whether the pixels are floats, whose scale depends on their values.
        decodes: Whether the column contains the bytes of picture files.
    """

    column: str
    value_bytes: int = 1
    reading_factor: int = 1
    is_float: bool = False
    decodes: bool = False

    @abstractmethod
    def read(self, column: pa.ChunkedArray, first: int, room: int, where: object) -> NDArray[Any]:
        """Return images of shape (n, height, width) or (n, height, width, channels).

        Args:
            column: Column of one row group.
            first: Number of its first row in the file, for error messages.
            room: Maximum size of the images in bytes.
            where: Path or address for error messages.

        Raises:
            DataError: There are nulls, images of several sizes, or pixels without a shape.
        """

    def read_rows(
        self, column: pa.ChunkedArray, first: int, room: int, where: object
    ) -> tuple[NDArray[Any], NDArray[np.intp]]:
        """Return images as `read` does, and the row of each; unreadable pictures may be skipped."""
        images = self.read(column, first, room, where)
        return images, np.arange(len(images))


def reader(
    kind: pa.DataType,
    metadata: Mapping[bytes, bytes],
    where: object,
    column: str = "image",
    pictures: PictureReader | None = None,
) -> Reader:
    """Return the reader for the type of a column.

    Args:
        kind: Type of the column.
        metadata: Metadata of the schema, which may contain height, width and channels.
        where: Path or address for error messages.
        column: Name of the column.
        pictures: Reader of encoded pictures; one without preprocessing if None.

    Raises:
        DataError: The type cannot contain images.
    """
    pictures = pictures or PictureReader()
    shape = image_shape(metadata, where) if b"height" in metadata else None
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.permutation not in (None, list(range(len(kind.shape)))):
            raise DataError(
                f"{where}: tensor permutation {kind.permutation}; expected height, width, channels"
            )
        values = kind.value_type
        return _Lists(
            column,
            tuple(kind.shape),
            math.prod(kind.shape) and values.bit_width // 8,
            is_float=pa.types.is_floating(values),
        )
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_fixed_size_binary(kind):
        return _Fixed(column, _shape(kind.byte_width, shape, where), kind.byte_width)
    if _is_list(kind):
        while _is_list(kind):
            kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _Lists(column, shape, kind.bit_width // 8, is_float=pa.types.is_floating(kind))
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _Pictures(f"{column}.bytes", column, pictures)
    if _is_bytes(kind):
        return _Pictures(column, column, pictures)
    raise DataError(
        f"{where}: column {column!r} is {kind}; expected fixed_size_binary, lists of numbers, "
        "or PNG bytes"
    )


def require_labels(kind: Any, where: object, column: str = "label") -> None:
    """Refuse a label column of an invalid type before it is read.

    Raises:
        DataError: The type is neither numbers, strings nor lists of numbers.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (_is_number(kind) or is_text(kind) or (_is_list(kind) and _is_number(kind.value_type))):
        raise DataError(
            f"{where}: column {column!r} is {kind}; expected integers, strings or one-hot lists"
        )


def labels(column: Any, first: int, where: object, name: str = "label") -> NDArray[Any]:
    """Return labels as int64, float64 or strings, shape (n,), or one-hot, shape (n, classes).

    Raises:
        DataError: There are nulls, or lists of several lengths.
    """
    require_values(column, name, first, where)
    values = _one(column)
    if pa.types.is_dictionary(values.type):
        return np.asarray(labels_of(values.dictionary, where, name)[np.asarray(values.indices)])
    return labels_of(values, where, name)


def labels_of(values: Any, where: object, name: str) -> NDArray[Any]:
    """Return the labels in an Arrow array without nulls; see `labels`."""
    kind = values.type
    if values.null_count:
        raise DataError(f"{where}: nulls inside the lists of column {name!r}; expected none")
    if is_text(kind):
        return np.array(values.to_pylist(), dtype=object)
    if _is_list(kind):
        width = _only_length(values, 0, where, name)
        return labels_of(values.flatten(), where, name).reshape(len(values), width)
    try:
        return np.asarray(values.cast(pa.float64() if pa.types.is_floating(kind) else pa.int64()))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{where}: column {name!r} contains numbers above 2^63; expected smaller ones"
        ) from error


@dataclass(frozen=True)
class _Fixed(Reader):
    column: str
    shape: tuple[int, ...]
    value_bytes: int

    def read(
        self,
        column: pa.ChunkedArray,
        first: int,
        _room: int,
        where: object,
    ) -> NDArray[Any]:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        require_values(column, self.column, first, where)
        return np.asarray(fixed_pixels(column).reshape(-1, *self.shape))


@dataclass(frozen=True)
class _Lists(Reader):
    column: str
    shape: tuple[int, ...] | None
    value_bytes: int
    is_float: bool
    reading_factor: int = 4  # two levels of two bytes for each value, and buffers that double

    def read(
        self,
        column: pa.ChunkedArray,
        first: int,
        _room: int,
        where: object,
    ) -> NDArray[Any]:
        require_values(column, self.column, first, where)
        values = _one(column)
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        count, sizes = len(values), []
        while _is_list(values.type):
            sizes.append(_only_length(values, first, where, self.column))
            values = values.flatten()
            if values.null_count:
                raise DataError(
                    f"{where}: nulls inside the lists of column {self.column!r}; expected none"
                )
        shape = self.shape if self.shape or len(sizes) > 1 else _shape(sizes[0], None, where)
        shape = shape or tuple(sizes)
        if math.prod(shape) != math.prod(sizes):
            raise DataError(
                f"{where}: images of {math.prod(sizes)} numbers, expected shape {shape}"
            )
        return _narrow(np.asarray(values.to_numpy(zero_copy_only=False))).reshape(count, *shape)


@dataclass(frozen=True)
class _Pictures(Reader):
    column: str
    above: str
    pictures: PictureReader
    decodes: bool = True

    def read(self, column: pa.ChunkedArray, first: int, room: int, where: object) -> NDArray[Any]:
        return self.read_rows(column, first, room, where)[0]

    def read_rows(
        self, column: pa.ChunkedArray, first: int, room: int, where: object
    ) -> tuple[NDArray[Any], NDArray[np.intp]]:
        packed = _one(column)
        if not self.pictures.skips:
            require_values(column, self.above, first, where)
        if pa.types.is_struct(packed.type):
            packed = pc.struct_field(packed, "bytes")
            if not self.pictures.skips:
                require_values(packed, self.column, first, where)
        images: NDArray[np.uint8] | None = None
        rows: list[int] = []
        for row, payload in enumerate(packed.to_pylist()):
            pixels = self.pictures.decode(payload, f"{where}, row {first + row}")
            if pixels is None:
                continue
            if images is None:
                self._require_room(len(packed) * pixels.nbytes, room, where, first + row)
                images = np.empty((len(packed), *pixels.shape), np.uint8)
            if pixels.shape != images.shape[1:]:
                sizes = f"{pixels.shape}, row {first + rows[0]} has {images.shape[1:]}"
                raise DataError(
                    f"{where}, row {first + row}: height, width, channels {sizes}; {ONE_SHAPE}"
                )
            images[len(rows)] = pixels
            rows.append(row)
        if images is None:
            return np.empty((0, 1, 1, 1), np.uint8), np.empty(0, np.intp)
        return images[: len(rows)], np.array(rows)

    @staticmethod
    def _require_room(size: int, room: int, where: object, row: int) -> None:
        if size > room:
            raise DataError(
                f"{where}, row {row}: pictures expand to more than {room} bytes; "
                "refused as a decompression bomb"
            )


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Convert integer pixels to uint8, an eighth of the memory of Python's integers in Arrow."""
    if values.dtype.kind in "iu" and len(values) and values.min() >= 0 and values.max() <= _WHITE:
        return values.astype(np.uint8)
    return values


def _shape(size: int, known: tuple[int, ...] | None, where: object) -> tuple[int, ...]:
    """Return the known shape, which must have `size` values; otherwise a grayscale square."""
    side = math.isqrt(size)
    shape = known or (side, side, 1)
    if math.prod(shape) != size or not size:
        reason = f"but shape {known} in the metadata" if known else "which is not a square"
        raise DataError(
            f"{where}: images of {size} values, {reason}; expected matching metadata height, "
            "width and channels"
        )
    return shape


def _is_list(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is a string type, or a dictionary of strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _one(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _only_length(lists: Any, first: int, where: object, name: str) -> int:
    if pa.types.is_fixed_size_list(lists.type):
        return int(lists.type.list_size)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if len(lengths) == 0:
        return 0
    if (lengths != lengths[0]).any():
        row = first + int(np.flatnonzero(lengths != lengths[0])[0])
        raise DataError(
            f"{where}: lists of different lengths in column {name!r} (first near row {row}); "
            "expected one size"
        )
    return int(lengths[0])


def require_values(column: Any, name: str, first: int, where: object) -> None:
    """Refuse a column with nulls.

    Raises:
        DataError: There are nulls; the message has their first rows.
    """
    if column.null_count:
        rows = np.flatnonzero(np.asarray(column.is_null()))
        shown = ", ".join(str(first + row) for row in rows[:5])
        raise DataError(
            f"{where}: {len(rows)} null(s) in column {name!r}, rows {shown}; expected none"
        )
