"""A folder of images by class: train/<class>/*.png and test/<class>/*.png, or <class>/*.png alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.names import TRAIN, split_named
from nnbuild.data import archives, decoding
from nnbuild.data.arrays import Raw, assemble, slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.file_tree import File, files_below, subfolders
from nnbuild.data.labels import by_value, normalized
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.errors import DataError

_MOST_NAMED = 3


class _Examples(NamedTuple):
    """The pictures of a split.

    Attributes:
        files: Paths, class after class.
        labels: Label of each.
        skipped: Files that are not pictures.
    """

    files: list[Path]
    labels: list[int]
    skipped: list[Path]


def load(path: Path, options: ReadOptions = DEFAULT) -> Dataset:
    """Read a dataset from pictures in one folder for each class.

    The classes are the folders' names in order, numbers by their value; a class folder may have
    folders of its own. Splits are the folders `train`, `test` and `val`, and their synonyms,
    without regard to case; see `nnbuild.data.splits`. All pictures must have one size, and be all
    grey or all coloured. Without a test split a sixth of each class is held out. For what is passed
    over see `nnbuild.data.file_tree`.

    Raises:
        DataError: No class, an empty one, a file that is not a picture, or one of another size; the
            message names it.
    """
    splits = _split_folders(path)
    classes = {split: _class_folders(folder) for split, folder in splits.items()}
    files = files_below(path)
    class_names = sorted(classes[TRAIN], key=by_value)
    for split, folders in classes.items():
        if unknown := sorted(set(folders) - set(class_names)):
            raise DataError(
                f"{splits[split]}: has class {unknown[0]!r}, which {splits[TRAIN].name}/ lacks; "
                "expected the same classes"
            )
    examples = {
        split: _examples(_by_class(files, path, folders), class_names, options)
        for split, folders in classes.items()
    }
    if not examples[TRAIN].files:
        raise DataError(
            f"{path}: no pictures; expected train/<class>/*.png and test/<class>/*.png, or <class>/*.png"
        )
    shape = _shape_of(examples[TRAIN].files[0])
    arrays: dict[str, NDArray[Any]] = {}
    for split, of_split in examples.items():
        if not of_split.files:
            raise DataError(f"{splits[split]}: no pictures; add them, or remove the folder")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = _read(of_split, shape)
    return assemble(
        Raw(**arrays),
        name=slug(path),
        source=str(path) + _note(path, splits, examples, files),
        where=path,
        class_names=class_names,
        pixel_max=decoding.WHITE,
    )


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folder of each split; the whole folder is for training if it has no `train`."""
    found: dict[str, Path] = {}
    folders = subfolders(path)
    for name in folders:
        split = split_named(name)
        if split in found:
            raise DataError(
                f"{path}: {found[split].name} and {name} are both named after the {split} split; "
                "keep one of them"
            )
        if split is not None:
            found[split] = path / name
    if TRAIN in found and subfolders(found[TRAIN]):  # otherwise `train` is a class, beside `bus`
        return {TRAIN: found.pop(TRAIN), **found}
    if found and len(found) == len(folders):
        raise DataError(f"{path}: has {', '.join(folders)} and no train/; add the training images")
    return {TRAIN: path}


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each class by its name in Unicode's composed form."""
    found: dict[str, Path] = {}
    for name in subfolders(folder):
        if normalized(name) in found:
            raise DataError(
                f"{folder}: two folders are called {normalized(name)!r}, in different Unicode forms; "
                "merge them"
            )
        found[normalized(name)] = folder / name
    return found


def _by_class(
    files: Sequence[File], path: Path, folders: Mapping[str, Path]
) -> dict[str, list[File]]:
    """Return the files of each class of a split, out of all files."""
    above = {folder.relative_to(path).parts: name for name, folder in folders.items()}
    depth = max(map(len, above), default=0)
    found: dict[str, list[File]] = {name: [] for name in folders}
    for file in files:
        parts = PurePosixPath(file.name).parts
        if len(parts) > depth and parts[:depth] in above:
            found[above[parts[:depth]]].append(file)
    if empty := next((name for name, of_class in found.items() if not of_class), None):
        raise DataError(f"{folders[empty]}: an empty folder; expected the pictures of a class")
    return found


def _examples(
    files: Mapping[str, Sequence[File]], class_names: Sequence[str], options: ReadOptions
) -> _Examples:
    """List every picture of a split with its label."""
    found = _Examples([], [], [])
    for label, name in enumerate(class_names):
        for file in files.get(name, ()):  # a test split may lack a class; the checks say so
            if decoding.has_ending(file.name):
                found.files.append(file.path)
                found.labels.append(label)
            elif options.skip_other_files:
                found.skipped.append(file.path)
            else:
                raise _not_a_picture(file)
    return found


def _not_a_picture(file: File) -> DataError:
    return DataError(
        f"{file.path}: {decoding.NO_PICTURE}; remove it, or set dataset.other_files to skip"
    )


def _note(
    path: Path,
    splits: Mapping[str, Path],
    examples: Mapping[str, _Examples],
    files: Sequence[File],
) -> str:
    """Return what a person should know about the files that were not read."""
    note = ""
    depth = 1 if splits[TRAIN] == path else 2
    loose = sum(decoding.has_ending(each.name) and each.name.count("/") < depth for each in files)
    if loose:
        note += f"; {loose} picture(s) outside of the class folders not read"
    skipped = sum(len(each.skipped) for each in examples.values())
    if skipped:
        note += f"; {skipped} file(s) that are not pictures skipped"
    if splits[TRAIN] != path:
        read = {folder.name for folder in splits.values()}
        unread = [name for name in subfolders(path) if name not in read]
        if unread:
            more = ", …" * (len(unread) > _MOST_NAMED)
            note += f"; not read, since they name no split: {', '.join(unread[:_MOST_NAMED])}{more}"
    return note


def _shape_of(file: Path) -> tuple[int, ...]:
    with decoding.strict():
        return decoding.read(file).shape


def _read(
    examples: _Examples, shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Images of shape (n, height, width, channels) and their labels.

    Raises:
        DataError: A picture is damaged or has another shape, or they would take too much memory.
    """
    files = examples.files
    size = int(np.prod(shape)) * len(files)
    if size > archives.allowance(sum(archives.require_regular(file) for file in files)):
        raise DataError(
            f"{files[0].parent}: {len(files)} pictures that claim to expand to {size} bytes; refused"
        )
    images = np.empty((len(files), *shape), np.uint8)
    with decoding.strict():
        for row, file in enumerate(files):
            pixels = decoding.read(file)
            if pixels.shape != shape:
                raise DataError(
                    f"{file}: height, width, channels {pixels.shape}, the first picture's are {shape};"
                    " expected one size, all grey or all RGB"
                )
            images[row] = pixels
    return images, np.array(examples.labels, np.int16)
