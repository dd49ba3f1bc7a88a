"""Encode labels of the usual formats as class numbers from 0, with class names."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import DataError

MAX_CLASSES = 1000
NONE = -1
"""Label of unlabelled images."""

_LONG_NUMBER = 10  # digits
_JOINERS = str.maketrans("", "", "\u200c\u200d")  # needed in words of Persian or Hindi
_ROWS = 65_536  # of one-hot labels, converted at a time
_MATRIX = 2  # dimensions of one-hot labels, or of a single column
_EXPECTED = "expected one for each image: integers, strings, whole floats, or one-hot rows"


class Encoded(NamedTuple):
    """Encoded labels of several splits.

    Attributes:
        splits: Labels of each split from 0, or -1 for unlabelled images, int16, shape (n,).
        class_names: Name of each class, in the order of the labels.
    """

    splits: tuple[NDArray[np.int16], ...]
    class_names: tuple[str, ...]


def encode(
    columns: Sequence[NDArray[Any]],
    where: object,
    class_names: Sequence[str] | None = None,
    *,
    fewest: int = 2,
) -> Encoded:
    """Encode the labels of several splits with common class numbers.

    Labels may be integers (from 0 or 1, with gaps), strings, whole floats, booleans or one-hot
    rows. The classes are the labels that occur, numbers by value and strings in alphabetical order,
    and are named after them; -1 marks unlabelled images.

    Args:
        columns: Labels of each split, shape (n,), (n, 1) or, one-hot, (n, classes).
        where: Path or address for error messages.
        class_names: Names of the labels 0, 1, 2 and so on, if the source defines them.
        fewest: Smallest number of classes.

    Raises:
        DataError: The labels have another format, or the number of classes is out of range.
    """
    widths = [
        labels.shape[1] for labels in columns if labels.ndim == _MATRIX and labels.shape[1] > 1
    ]
    flat = [_flat(labels, where) for labels in columns]
    if class_names is None and widths:
        class_names = [str(label) for label in range(max(widths))]
    names = _names(flat, where) if class_names is None else tuple(map(normalized, class_names))
    require_names(names, where, fewest=fewest)
    numbers = _numbers(flat, names, where, occurring=class_names is None)
    return Encoded(tuple(each.astype(np.int16) for each in numbers), names)


def _flat(labels: NDArray[Any], where: object) -> NDArray[Any]:
    """Return labels as int64 or as normalized strings, shape (n,)."""
    if labels.ndim == _MATRIX and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == _MATRIX and labels.dtype.kind in "biuf":
        return _from_one_hot(labels, where)
    if labels.ndim != 1 or not len(labels):
        raise DataError(
            f"{where}: labels of shape {labels.shape}, type {labels.dtype}; {_EXPECTED}"
        )
    if labels.dtype.kind == "f":
        return _from_floats(labels, where)
    if labels.dtype.kind in "biu":
        if labels.dtype == np.uint64 and labels.max() > np.iinfo(np.int64).max:
            raise DataError(f"{where}: a label of {labels.max()}; expected numbers below 2^63")
        return labels.astype(np.int64)
    if labels.dtype.kind == "U" or all(isinstance(each, str) for each in labels):
        return np.array([normalized(str(each)) for each in labels], dtype=object)
    raise DataError(f"{where}: labels of type {labels.dtype}; {_EXPECTED}")


def _from_one_hot(rows: NDArray[Any], where: object) -> NDArray[Any]:
    labels = np.empty(len(rows), np.int64)
    is_one_hot = len(rows) > 0
    for start in range(0, len(rows), _ROWS):  # which may be many, in a mapped file
        part = rows[start : start + _ROWS]
        ones = part == 1
        is_one_hot &= bool(((part == 0) | ones).all() and (ones.sum(axis=1) == 1).all())
        labels[start : start + _ROWS] = ones.argmax(axis=1)
    if not is_one_hot:
        raise DataError(
            f"{where}: labels of shape {rows.shape} that are not one-hot; "
            "expected a single 1 in each row, or one label for each image"
        )
    return labels


def _from_floats(labels: NDArray[Any], where: object) -> NDArray[Any]:
    whole = np.isfinite(labels) & (np.abs(labels) < 2**53)
    whole &= np.floor(np.where(whole, labels, 0)) == np.where(whole, labels, 0)
    if not whole.all():
        odd = labels[~whole][0]
        raise DataError(f"{where}: a label of {odd}; expected whole numbers")
    return labels.astype(np.int64)


def _names(columns: Sequence[NDArray[Any]], where: object) -> tuple[str, ...]:
    """Return the labels that occur as strings, in order."""
    if any(labels.dtype == object for labels in columns):
        texts = {str(label) for labels in columns for label in labels} - {str(NONE)}
        return tuple(sorted(texts, key=by_value))
    values = np.unique(np.concatenate([np.unique(labels) for labels in columns]))
    if values[0] < NONE:
        raise DataError(
            f"{where}: labels from {values[0]} to {values[-1]}; expected 0 or more, "
            "or -1 for unlabelled images"
        )
    return tuple(str(label) for label in values[values != NONE])


def _numbers(
    columns: Sequence[NDArray[Any]], names: tuple[str, ...], where: object, *, occurring: bool
) -> list[NDArray[Any]]:
    if occurring or any(labels.dtype == object for labels in columns):
        known = {name: number for number, name in enumerate(names)} | {str(NONE): NONE}
        return [_encode_names(labels, known, where) for labels in columns]
    low, high = (f(int(f(labels)) for labels in columns) for f in (min, max))
    if low < NONE or high >= len(names):
        label = high if high >= len(names) else low
        raise DataError(
            f"{where}: label {label} with {len(names)} classes; expected 0 to {len(names) - 1}"
        )
    return list(columns)


def _encode_names(labels: NDArray[Any], known: dict[str, int], where: object) -> NDArray[Any]:
    values, inverse = np.unique(labels, return_inverse=True)
    if unknown := [value for value in values if str(value) not in known]:
        raise DataError(
            f"{where}: label {str(unknown[0])!r} is not one of the {len(known) - 1} classes"
        )
    return np.array([known[str(value)] for value in values], np.int64)[inverse]


def has_names(class_names: Sequence[str]) -> bool:
    """Return whether classes have names, and not only numbers."""
    return any(not (name.isascii() and name.isdecimal()) for name in class_names)


def by_value(name: str) -> tuple[int, int, str]:
    """Return a sort key of class names: numbers by value, then strings."""
    number = name.isascii() and name.isdigit() and len(name) < _LONG_NUMBER
    return (0, int(name), name) if number else (1, 0, name)


def normalized(name: str) -> str:
    """Return a class name in composed Unicode form (NFC), so that equal names compare equal."""
    return unicodedata.normalize("NFC", name)


def require_names(class_names: Sequence[str], where: object, *, fewest: int = 2) -> None:
    """Refuse invalid class names, or an invalid number of classes.

    Raises:
        DataError: There are too few or too many classes, or a name is repeated or unprintable.
    """
    if len(class_names) not in range(fewest, MAX_CLASSES + 1):
        raise DataError(
            f"{where}: {len(class_names)} class(es); expected {fewest} to {MAX_CLASSES}"
        )
    if unprintable := [name for name in class_names if not _is_printable(name)]:
        raise DataError(
            f"{where}: invalid class name {unprintable[0]!r}; expected printable characters"
        )
    if (repeated := _first_repeated(class_names)) is not None:
        raise DataError(
            f"{where}: two classes have the same name {repeated!r}; expected different names"
        )


def _is_printable(name: str) -> bool:
    text = name.translate(_JOINERS)
    return bool(text) and text.isprintable()


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
