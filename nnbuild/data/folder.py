"""A folder of images by class: train/<class>/*.png and test/<class>/*.png, or <class>/*.png alone."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnbuild.data import archives, pictures
from nnbuild.data.arrays import Raw, assemble, slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.splits import assemble_held_out
from nnbuild.errors import DataError

_LONG_NUMBER = 10  # digits

_Examples = list[tuple[Path, int]]


def load(path: Path) -> Dataset:
    """A dataset from pictures that stand in one folder for each class.

    The classes are the folders' names in order, numbers by their value. Hidden files are passed over. All
    pictures must have one size, and be all grey or all coloured. Without test/ a sixth of each class is held
    out.

    Raises:
        DataError: no class, an empty one, a file that is no picture, one of another size, or a link that
            leads out of the folder; the message names it.
    """
    root = Path(os.path.realpath(path))
    top = _subfolders(root, root)
    train_root = root / "train" if "train" in top else root
    class_names = sorted(_subfolders(train_root, root), key=_by_value)
    train = _examples(train_root, class_names, root)
    if not train:
        raise DataError(
            f"{path}: no pictures; expected train/<class>/*.png and test/<class>/*.png, or <class>/*.png"
        )
    if "train" not in top or "test" not in top:
        images, labels = _read(train, _shape_of(train[0][0]))
        return assemble_held_out(
            images, labels, name=slug(path), source=str(path), where=path, class_names=class_names
        )
    if unknown := sorted(set(_subfolders(root / "test", root)) - set(class_names)):
        raise DataError(
            f"{root / 'test'}: has class {unknown[0]!r}, which train/ lacks; expected the same classes"
        )
    test = _examples(root / "test", class_names, root)
    shape = _shape_of(train[0][0])
    raw = Raw(*_read(train, shape), *_read(test, shape))
    return assemble(raw, name=slug(path), source=str(path), where=path, class_names=class_names)


def _by_value(name: str) -> tuple[int, int, str]:
    number = name.isascii() and name.isdigit() and len(name) < _LONG_NUMBER
    return (0, int(name), name) if number else (1, 0, name)


def _entries(folder: Path, root: Path) -> list[Path]:
    """What a folder holds, in order, without hidden files.

    Raises:
        DataError: an entry is a link that leads out of `root`.
    """
    with archives.translated(folder):
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(root):
            raise DataError(f"{entry}: a link that leads out of {root}; put the file itself there")
    return entries


def _subfolders(folder: Path, root: Path) -> list[str]:
    return [entry.name for entry in _entries(folder, root) if entry.is_dir()]


def _examples(split: Path, class_names: list[str], root: Path) -> _Examples:
    """Every picture of a split with its label."""
    examples: _Examples = []
    for label, name in enumerate(class_names):
        if not (split / name).is_dir():
            continue  # a test split may lack a class; the checks on the data say so
        files = _entries(split / name, root)
        if not files:
            raise DataError(f"{split / name}: an empty folder; expected the pictures of a class")
        for file in files:
            if file.suffix.lower() not in pictures.SUFFIXES:
                known = ", ".join(sorted(pictures.SUFFIXES))
                raise DataError(f"{file}: not a picture; expected a file that ends in {known}")
            examples.append((file, label))
    return examples


def _shape_of(file: Path) -> tuple[int, ...]:
    with pictures.strict():
        return _picture(file).shape


def _picture(file: Path) -> NDArray[np.uint8]:
    archives.require_regular(file)
    with archives.translated(file):
        payload = file.read_bytes()
    return pictures.decode(payload, file)


def _read(
    examples: _Examples, shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Images of shape (n, height, width, channels) and their labels.

    Raises:
        DataError: a picture is damaged or has another shape, or they would take too much memory.
    """
    size = int(np.prod(shape)) * len(examples)
    if size > archives.allowance(sum(archives.require_regular(file) for file, _ in examples)):
        raise DataError(
            f"{examples[0][0].parent}: {len(examples)} pictures that claim to expand to {size} bytes; refused"
        )
    images = np.empty((len(examples), *shape), np.uint8)
    with pictures.strict():
        for row, (file, _) in enumerate(examples):
            pixels = _picture(file)
            if pixels.shape != shape:
                raise DataError(
                    f"{file}: height, width, channels {pixels.shape}, the first picture's are {shape};"
                    " expected one size, all grey or all RGB"
                )
            images[row] = pixels
    return images, np.array([label for _, label in examples], np.int16)
