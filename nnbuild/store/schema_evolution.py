"""Find one type for the columns whose type differs between the files of a table.

The columns that nnbuild writes have fixed types. Columns that users carry through to `scores` have
the types of their inputs, which change from day to day: integers become floats when a value is
missing, or numbers become text. Types with a common type are converted to it without loss; all
others are read as text.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_TypeTest = Callable[[pa.DataType], bool]
_PairTest = Callable[[pa.DataType, pa.DataType], bool]

_MOST_DIGITS = 38  # of a decimal that every reader supports
_DOUBLE_DIGITS = 15  # decimal digits that a double holds exactly
_INTEGER_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
_EXACT_BITS = 53  # of an integer in a double
_EXACT_IN_DOUBLE = 2**_EXACT_BITS
_INTEGERS = ("INT32", "INT64")  # physical types of Parquet
_UNITS = ("s", "ms", "us", "ns")


class File(NamedTuple):
    """Schema and statistics of one file, which decide the types of its columns.

    Attributes:
        schema: Arrow schema of the file.
        metadata: Its Parquet metadata, with the statistics of its values.
    """

    schema: pa.Schema
    metadata: "pq.FileMetaData"


def unified(files: Sequence[File]) -> dict[str, pa.DataType | None]:
    """Return one type for each column of several files, in the order of appearance.

    Args:
        files: Files of one table.

    Returns:
        Type of each column by its name; None if the column is read as text, because its types
        have no common type, or a file has values that are not exact in the common type.
    """
    columns: dict[str, list[File]] = {}
    for file in files:
        for name in file.schema.names:
            columns.setdefault(name, []).append(file)
    return {name: _type_in_all(name, found) for name, found in columns.items()}


def _type_in_all(name: str, files: Sequence[File]) -> pa.DataType | None:
    kinds = list(dict.fromkeys(file.schema.field(name).type for file in files))
    kind = _most_common_type(kinds)
    if kind is None or all(fits(file, name, kind) for file in files):
        return kind
    return None


def _most_common_type(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    found = kinds[0]
    for kind in kinds[1:]:
        if found is None:
            return None
        found = common_type(found, kind)
    return found


def fits(file: File, name: str, target: pa.DataType) -> bool:
    """Return whether all values of a column are exact in another type.

    Args:
        file: File with the column.
        name: Name of the column.
        target: Common type of the column in this and other files.
    """
    kind = file.schema.field(name).type
    if kind.equals(target):
        return True
    try:
        pa.nulls(0, kind).cast(target)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    if not _may_lose(kind, target):
        return True
    nested = pa.types.is_nested(kind)
    return all(
        abs(value) <= _EXACT_IN_DOUBLE if nested else _is_exact(value, kind, target)
        for value in _extremes(file.metadata, name)
    )


def _may_lose(kind: pa.DataType, target: pa.DataType) -> bool:
    """Return whether a value of a type may be inexact in another type that the rules allow."""
    if pa.types.is_nested(kind):
        return True
    if pa.types.is_integer(kind):
        return bool(pa.types.is_floating(target) and kind.bit_width > _EXACT_BITS)
    temporal = pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_date(kind)
    return bool(temporal and getattr(target, "unit", None) == "ns")


def _is_exact(value: int, kind: pa.DataType, target: pa.DataType) -> bool:
    storage = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    stored = pa.uint64() if pa.types.is_uint64(kind) else storage
    try:
        pa.array([value], stored).view(kind).cast(target)
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True


def _extremes(metadata: "pq.FileMetaData", name: str) -> Iterator[int]:
    """Yield the smallest and largest stored integer of each row group of a column.

    Without statistics, the largest 64-bit integer stands for the unknown values.
    """
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            path = column.path_in_schema
            if path != name and not path.startswith(f"{name}."):
                continue
            if column.physical_type not in _INTEGERS or not column.num_values:
                continue
            statistics = column.statistics
            if statistics is not None and statistics.has_min_max:
                yield from _stored_range(statistics)
            elif (
                statistics is None
                or not statistics.has_null_count
                or (statistics.null_count < column.num_values)
            ):
                yield 2**63 - 1


def _stored_range(statistics: "pq.Statistics") -> tuple[int, int]:
    if statistics.logical_type.type == "INT":  # unsigned ones too, whose raw value has a sign
        return statistics.min, statistics.max
    return statistics.min_raw, statistics.max_raw


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the Arrow type for the values of two others, or None if there is none.

    Numbers are promoted (int64 and double to double, integers and decimals to a wider decimal),
    the unit of times to the finer one, zones to UTC. A type of nulls takes the other one.
    It does not check the values of particular files, as `unified` does.
    """
    if first.equals(second):
        return first
    first, second = _plain(first), _plain(second)
    for one, other in ((first, second), (second, first)):
        if one.equals(other) or pa.types.is_null(one):
            return other
        for applies, combine in _RULES:
            if applies(one, other):
                return combine(one, other)
    return None


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without encodings that only concern memory."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if _is_binary(kind):
        return pa.binary()
    if pa.types.is_date64(kind):
        return pa.date32()
    return kind


def _is_binary(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_binary_view,
        )
    )


def _is_list(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )


def _integers(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the smallest integer type for both, or a decimal if there is none."""
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    unsigned, signed = (other, one) if pa.types.is_signed_integer(one) else (one, other)
    width = max(2 * unsigned.bit_width, signed.bit_width)
    if width > 64:
        return pa.decimal128(_INTEGER_DIGITS[64], 0)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[width]


def _decimals(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the decimal that holds both types' digits before and after the point."""
    whole = max(each.precision - each.scale for each in (one, other))
    scale = max(one.scale, other.scale)
    return pa.decimal128(whole + scale, scale) if whole + scale <= _MOST_DIGITS else None


def _integer_and_decimal(integer: pa.DataType, decimal: pa.DataType) -> pa.DataType | None:
    return _decimals(pa.decimal128(_INTEGER_DIGITS[integer.bit_width], 0), decimal)


def _float_and_decimal(_: pa.DataType, decimal: pa.DataType) -> pa.DataType | None:
    return pa.float64() if decimal.precision <= _DOUBLE_DIGITS else None


def _timestamps(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if (one.tz is None) != (other.tz is None):
        return None  # the moment of a time without a zone is unknown
    zone = one.tz if one.tz == other.tz else "UTC"
    return pa.timestamp(max(one.unit, other.unit, key=_UNITS.index), zone)


def _date_and_timestamp(_: pa.DataType, timestamp: pa.DataType) -> pa.DataType | None:
    return timestamp if timestamp.tz is None else None


def _times(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    return pa.time64("ns" if "ns" in (one.unit, other.unit) else "us")


def _durations(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    return pa.duration(max(one.unit, other.unit, key=_UNITS.index))


def _lists(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    values = common_type(one.value_type, other.value_type)
    return None if values is None else pa.list_(values)


def _structs(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    fields = {field.name: field.type for field in one}
    for field in other:
        kind = common_type(fields.get(field.name, field.type), field.type)
        if kind is None:
            return None
        fields[field.name] = kind
    return pa.struct(list(fields.items()))


def _both(check: _TypeTest) -> _PairTest:
    return lambda one, other: check(one) and check(other)


def _pair(first: _TypeTest, second: _TypeTest) -> _PairTest:
    return lambda one, other: first(one) and second(other)


# Condition on two different plain types, and their common type; both orders are tried.
_RULES = (
    (_both(pa.types.is_integer), _integers),
    (_both(pa.types.is_floating), lambda *_: pa.float64()),
    (_pair(pa.types.is_integer, pa.types.is_floating), lambda *_: pa.float64()),
    (_both(pa.types.is_decimal), _decimals),
    (_pair(pa.types.is_integer, pa.types.is_decimal), _integer_and_decimal),
    (_pair(pa.types.is_floating, pa.types.is_decimal), _float_and_decimal),
    (_both(pa.types.is_timestamp), _timestamps),
    (_pair(pa.types.is_date, pa.types.is_timestamp), _date_and_timestamp),
    (_both(pa.types.is_duration), _durations),
    (_both(pa.types.is_time), _times),
    (_both(_is_list), _lists),
    (_both(pa.types.is_struct), _structs),
)
