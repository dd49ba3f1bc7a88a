"""Labels in the forms that people keep them in, as classes from 0 with their names."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import DataError

MOST_CLASSES = 1000
NONE = -1
"""The label of an image that has none."""

_LONG_NUMBER = 10  # digits
_JOINERS = str.maketrans("", "", "\u200c\u200d")  # parts of words in Persian or Hindi
_EXPECTED = "expected one for each image: integers, texts, whole floats, or one-hot rows"


class Encoded(NamedTuple):
    """Labels of several splits as classes.

    Attributes:
        splits: int16, shape (n,) each, from 0; -1 for an image without a label.
        class_names: One for each class, in the order of the labels.
    """

    splits: tuple[NDArray[np.int16], ...]
    class_names: tuple[str, ...]


def encode(
    columns: Sequence[NDArray[Any]], where: object, class_names: Sequence[str] | None = None
) -> Encoded:
    """Number the classes that several splits share.

    Labels may be integers (from 0 or 1, with gaps), texts, floats that are whole numbers, booleans
    or one-hot rows. The classes are the labels that occur, numbers by their value and texts by the
    alphabet, and are named by them; -1 is no label.

    Args:
        columns: Labels of each split, shape (n,), (n, 1) or, one-hot, (n, classes).
        where: What a message should name.
        class_names: Names that the source gives to the labels 0, 1, 2 and so on.

    Raises:
        DataError: Labels of another form, or a number of classes that cannot be trained on.
    """
    widths = [labels.shape[1] for labels in columns if labels.ndim == 2 and labels.shape[1] > 1]  # noqa: PLR2004
    flat = [_flat(labels, where) for labels in columns]
    if class_names is None and widths:
        class_names = [str(label) for label in range(max(widths))]
    names = _names(flat, where) if class_names is None else tuple(map(normalized, class_names))
    require_names(names, where)
    numbers = _numbers(flat, names, where, occurring=class_names is None)
    return Encoded(tuple(each.astype(np.int16) for each in numbers), names)


def _flat(labels: NDArray[Any], where: object) -> NDArray[Any]:
    """Return labels as int64 or as normalised texts, shape (n,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:  # noqa: PLR2004
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf":  # noqa: PLR2004
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
    ones = rows == 1
    if not len(rows) or not ((rows == 0) | ones).all() or (ones.sum(axis=1) != 1).any():
        raise DataError(
            f"{where}: labels of shape {rows.shape} that are not one-hot; "
            "expected a single 1 in each row, or one label for each image"
        )
    return np.asarray(ones.argmax(axis=1))


def _from_floats(labels: NDArray[Any], where: object) -> NDArray[Any]:
    whole = np.isfinite(labels) & (np.abs(labels) < 2**53)
    whole &= np.floor(np.where(whole, labels, 0)) == np.where(whole, labels, 0)
    if not whole.all():
        odd = labels[~whole][0]
        raise DataError(f"{where}: a label of {odd}; expected whole numbers")
    return labels.astype(np.int64)


def _names(columns: Sequence[NDArray[Any]], where: object) -> tuple[str, ...]:
    """Return the labels that occur, in order, as text."""
    if any(labels.dtype == object for labels in columns):
        texts = {str(label) for labels in columns for label in labels}
        return tuple(sorted(texts, key=by_value))
    values = np.unique(np.concatenate([np.unique(labels) for labels in columns]))
    if values[0] < NONE:
        raise DataError(
            f"{where}: labels from {values[0]} to {values[-1]}; expected 0 or more, -1 for none"
        )
    return tuple(str(label) for label in values[values != NONE])


def _numbers(
    columns: Sequence[NDArray[Any]], names: tuple[str, ...], where: object, *, occurring: bool
) -> list[NDArray[Any]]:
    if occurring or any(labels.dtype == object for labels in columns):
        known = {name: number for number, name in enumerate(names)} | {str(NONE): NONE}
        return [_looked_up(labels, known, where) for labels in columns]
    low, high = (f(int(f(labels)) for labels in columns) for f in (min, max))
    if low < NONE or high >= len(names):
        label = high if high >= len(names) else low
        raise DataError(
            f"{where}: label {label}, and {len(names)} classes; expected 0 to {len(names) - 1}"
        )
    return list(columns)


def _looked_up(labels: NDArray[Any], known: dict[str, int], where: object) -> NDArray[Any]:
    values, inverse = np.unique(labels, return_inverse=True)
    if unknown := [value for value in values if str(value) not in known]:
        raise DataError(
            f"{where}: label {str(unknown[0])!r}, which is not one of the {len(known) - 1} classes"
        )
    return np.array([known[str(value)] for value in values], np.int64)[inverse]


def by_value(name: str) -> tuple[int, int, str]:
    """Return a sort key of class names: numbers by their value, then texts."""
    number = name.isascii() and name.isdigit() and len(name) < _LONG_NUMBER
    return (0, int(name), name) if number else (1, 0, name)


def normalized(name: str) -> str:
    """Return a class name in Unicode's composed form, so that equal names are equal text."""
    return unicodedata.normalize("NFC", name)


def require_names(class_names: Sequence[str], where: object) -> None:
    """Refuse names or a number of classes that cannot be trained on.

    Raises:
        DataError: Names what is wrong.
    """
    if not 2 <= len(class_names) <= MOST_CLASSES:  # noqa: PLR2004
        raise DataError(f"{where}: {len(class_names)} class(es); expected 2 to {MOST_CLASSES}")
    if unprintable := [name for name in class_names if not _is_printable(name)]:
        raise DataError(
            f"{where}: a class is called {unprintable[0]!r}; expected a name that can be printed"
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
