"""Convert table values to JSON and text: exact numbers, ISO 8601 times, nested values as JSON."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
_MAX_PYTHON_YEAR = 9999
_INFINITY = {32: 2**31 - 1, 64: 2**63 - 1}  # DuckDB stores these for an infinite date or time


def dumps(value: Any) -> str:
    """Return JSON on one line, with all digits of decimals.

    Args:
        value: Result of `plain`.
    """
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)}: {dumps(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value, allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value that consists of what JSON supports, and of decimals.

    NaN and infinite numbers become null, times ISO 8601 text, bytes hexadecimal digits, and
    anything else text.
    """
    if isinstance(value, Mapping):
        return {_key(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    for kinds, convert in _PLAIN:
        if isinstance(value, kinds):
            return convert(value)
    return str(value)


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: Decimal) -> Any:
    if not value.is_finite():
        return None
    exponent = value.as_tuple().exponent
    return int(value) if isinstance(exponent, int) and exponent >= 0 else value


def _key(value: Any) -> str:
    key = plain(value)
    return key if isinstance(key, str) else dumps(key)


def rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of an Arrow batch as Python values that `plain` accepts.

    Times are text already, because Python has no times outside of the years 1 to 9999.
    """
    yield from zip(*map(values, batch.columns), strict=True)


def values(column: pa.Array) -> list[Any]:
    """Return the values of an Arrow array as `rows` does."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return values(column.storage)
    for applies, convert in _CONVERTERS:
        if applies(kind):
            return convert(column)
    plain_values: list[Any] = column.to_pylist()
    return plain_values


def _each(convert: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [None if item is None else convert(item) for item in items]


def _dictionary(column: pa.Array) -> list[Any]:
    return values(column.dictionary_decode())


def _list(column: pa.Array) -> list[Any]:
    lengths = column.value_lengths().to_pylist()
    inner = iter(values(column.flatten()))
    return _each(lambda length: [next(inner) for _ in range(length)], lengths)


def _fixed_list(column: pa.Array) -> list[Any]:
    inner = iter(values(column.flatten()))
    valid = column.is_valid().to_pylist()
    size = column.type.list_size
    return [[next(inner) for _ in range(size)] if each else None for each in valid]


def _struct(column: pa.Array) -> list[Any]:
    names = [field.name for field in column.type]
    valid = column.is_valid().to_pylist()
    if not names:
        return [{} if each else None for each in valid]
    structs = zip(*map(values, column.flatten()), strict=True)
    return [
        dict(zip(names, struct, strict=True)) if each else None
        for struct, each in zip(structs, valid, strict=True)
    ]


def _map(column: pa.Array) -> list[Any]:
    pairs = pa.struct([("key", column.type.key_type), ("value", column.type.item_type)])
    maps = _list(column.cast(pa.list_(pairs)))
    return _each(lambda each: {_key(pair["key"]): pair["value"] for pair in each}, maps)


def _date(column: pa.Array) -> list[Any]:
    return _each(_date_text, column.cast(pa.date32()).cast(pa.int32()).to_pylist())


def _date_text(days: int) -> str:
    if abs(days) == _INFINITY[32]:
        return _infinite(days)
    return _iso_year(str(np.datetime64(days, "D")))


def _timestamp(column: pa.Array) -> list[Any]:
    unit, zone = column.type.unit, "+00:00" if column.type.tz else ""
    numbers = column.cast(pa.timestamp(unit)).cast(pa.int64()).to_pylist()
    return _each(lambda number: _timestamp_text(number, unit, zone), numbers)


def _timestamp_text(number: int, unit: str, zone: str) -> str:
    if abs(number) == _INFINITY[64]:
        return _infinite(number)
    seconds, fraction = divmod(number, _UNITS[unit])
    whole = _iso_year(str(np.datetime64(seconds, "s")))
    return f"{whole}{_fraction(fraction * (10**9 // _UNITS[unit]))}{zone}"


def _infinite(number: int) -> str:
    return "infinity" if number > 0 else "-infinity"


def _iso_year(text: str) -> str:
    """Return a date of NumPy with the year in ISO 8601: four digits, or a sign and more digits."""
    sign = "-" if text.startswith("-") else ""
    year, rest = text.removeprefix("-").split("-", 1)
    more = "+" if not sign and int(year) > _MAX_PYTHON_YEAR else sign
    return f"{more}{int(year):04}-{rest}"


def _time(column: pa.Array) -> list[Any]:
    unit = column.type.unit
    integers = pa.int32() if column.type.bit_width == 32 else pa.int64()
    return _each(lambda number: _time_text(number, unit), column.cast(integers).to_pylist())


def _time_text(number: int, unit: str) -> str:
    seconds, fraction = divmod(number, _UNITS[unit])
    hours, minutes = divmod(seconds // 60, 60)
    return (
        f"{hours:02}:{minutes:02}:{seconds % 60:02}{_fraction(fraction * (10**9 // _UNITS[unit]))}"
    )


def _fraction(nanoseconds: int) -> str:
    """Return a fraction of a second as `datetime.isoformat` does, with nine digits if needed."""
    if not nanoseconds:
        return ""
    digits = f"{nanoseconds:09}"
    return f".{digits[:6] if digits.endswith('000') else digits}"


def _interval(column: pa.Array) -> list[Any]:
    return _each(lambda each: _period(each.months, each.days, each.nanoseconds), column.to_pylist())


def _period(months: int, days: int, nanoseconds: int) -> str:
    parts = [f"{count}{letter}" for count, letter in ((months, "M"), (days, "D")) if count]
    time_part = _duration(nanoseconds)[1:] if nanoseconds or not parts else ""
    return f"P{''.join(parts)}{time_part}"


def _duration(nanoseconds: int) -> str:
    """Return the ISO 8601 text of a duration, such as PT3.5S."""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    digits = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"PT{'-' if nanoseconds < 0 else ''}{seconds}{digits}S"


def _durations(column: pa.Array) -> list[Any]:
    factor = 10**9 // _UNITS[column.type.unit]
    return _each(lambda number: _duration(number * factor), column.cast(pa.int64()).to_pylist())


_CONVERTERS: tuple[tuple[Callable[[Any], bool], Callable[[Any], list[Any]]], ...] = (
    (pa.types.is_dictionary, _dictionary),
    (pa.types.is_map, _map),
    (lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind), _list),
    (pa.types.is_fixed_size_list, _fixed_list),
    (pa.types.is_struct, _struct),
    (pa.types.is_date, _date),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_time, _time),
    (pa.types.is_duration, _durations),
    (pa.types.is_interval, _interval),
)

_PLAIN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    ((str, int, bool, type(None)), lambda value: value),
    ((float, np.floating), _finite),
    (Decimal, _number),
    ((date, time), lambda value: value.isoformat()),
    (timedelta, lambda value: _duration(value // timedelta(microseconds=1) * 1000)),
    (bytes, bytes.hex),
)
