"""Recognise the usual names of splits and arrays: which split, and images or labels."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nnbuild.errors import DataError, suggestion

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SYNONYMS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    TEST: ("test", "testing"),
}
_BY_NAME = {name: split for split, names in _SYNONYMS.items() for name in names}
_LETTERS = re.compile(r"[a-z]+")
_IMAGES = frozenset({"x", "image", "images", "img", "imgs"})
_LABELS = frozenset({"y", "label", "labels", "target", "targets"})
_UNNAMED = "arr_0"  # NumPy's name for an array that was saved without one
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_LAYOUTS = "x_train and y_train, train_images and train_labels, or images and labels"


def split_named(name: str) -> str | None:
    """Return the split that the name of a folder means: `train` for `Training`, None for `cats`."""
    return _BY_NAME.get(name.lower())


def split_of_file(name: str) -> str | None:
    """Return the split that the name of a file means: `validation` for `Val-00000.parquet`.

    It is the first word of the name that means a split, as in `mnist_test.parquet`; a name that
    begins with `train` or `test` counts too, as in `trainset.parquet`.
    """
    words = _LETTERS.findall(name.lower())
    if (split := next(filter(None, map(split_named, words)), None)) is not None:
        return split
    return next((split for split in (TRAIN, TEST) if name.lower().startswith(split)), None)


class Role(NamedTuple):
    """Content of an array by its name.

    Attributes:
        group: Other words of the name, such as `k49`; the arrays of a dataset share them.
        split: `train`, `validation` or `test`; None if the name has none.
        kind: `images` or `labels`.
    """

    group: str
    split: str | None
    kind: str


def role_of(name: str) -> Role | None:
    """Return the content of an array by its name: `x_train`, `val_labels`, `k49-test-imgs`."""
    words = _WORDS.findall(name)
    splits = [split for word in words if (split := split_named(word)) is not None]
    kinds = [
        kind
        for word in words
        for kind, known in (("images", _IMAGES), ("labels", _LABELS))
        if word.lower() in known
    ]
    if len(splits) > 1 or len(kinds) != 1:
        return None
    known = _IMAGES | _LABELS
    others = [word for word in words if word.lower() not in known and split_named(word) is None]
    return Role("-".join(others).lower(), splits[0] if splits else None, kinds[0])


def find_arrays(
    names: Iterable[str],
    where: object,
    keys: Mapping[str, str] | None = None,
    *,
    grouped: bool = False,
) -> dict[tuple[str, str], str]:
    """Find the arrays of a dataset by their names.

    Args:
        names: Names of all arrays.
        where: Source of the arrays for messages.
        keys: Names chosen by the user, by `x_train`, `y_train` and so on.
        grouped: Whether names may have further words, which must then be the same for all.

    Returns:
        Name of each array by split (`train`, `validation`, `test`) and kind (`images`, `labels`).

    Raises:
        DataError: There are no training images and labels, two arrays for one purpose, images
            without labels, or no array with a name chosen by the user.
    """
    names = sorted(names)
    found = _by_role(names, where, grouped=grouped)
    for key, name in (keys or {}).items():
        if name not in names:
            raise DataError(f"{where}: no array {name!r}; {suggestion(name, names)}")
        if (role := role_of(key)) is not None:
            found[role.split or TRAIN, role.kind] = name
    if {split for split, _ in found} == {""}:
        found = {(TRAIN, kind): name for (_, kind), name in found.items()}
    if missing := [kind for kind in ("images", "labels") if (TRAIN, kind) not in found]:
        held = ", ".join(names[:10]) or "nothing"
        raise DataError(
            f"{where}: lacks training {' and '.join(missing)} (it holds {held}); "
            f"expected {_LAYOUTS}, or their names in dataset.keys"
        )
    for split in (VALIDATION, TEST):
        kinds = [kind for kind in ("images", "labels") if (split, kind) in found]
        if len(kinds) == 1:
            other = "labels" if kinds[0] == "images" else "images"
            raise DataError(
                f"{where}: {found[split, kinds[0]]} has no {other}; "
                "add them, or give their name in dataset.keys"
            )
    return {role: name for role, name in found.items() if role[0]}


def _by_role(names: list[str], where: object, *, grouped: bool) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    groups: dict[str, str] = {}
    for name in names:
        role = role_of(name)
        if role is None or (role.group and not grouped):
            continue
        groups.setdefault(role.group, name)
        place = (role.split or "", role.kind)
        if place in found or len(groups) > 1:
            other = found.get(place) or next(iter(groups.values()))
            raise DataError(
                f"{where}: {other} and {name} could both be the {role.kind}; "
                "leave one out, or name the arrays in dataset.keys"
            )
        found[place] = name
    return found


def scored_array(names: Iterable[str], where: object) -> str:
    """Choose the array to score: `images`, those of the test split, or the only unnamed array.

    Raises:
        DataError: There is no such array.
    """
    names = sorted(names)
    roles = {
        (role.split, role.kind): name
        for name in names
        if (role := role_of(name)) and not role.group
    }
    for split in (None, TEST):
        if (split, "images") in roles:
            return roles[split, "images"]
    if names == [_UNNAMED]:
        return _UNNAMED
    held = ", ".join(names[:10]) or "nothing"
    raise DataError(f"{where}: lacks images or x_test (it holds {held}); expected one of these")
