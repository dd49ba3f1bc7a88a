"""Read image folders: train/<class>/*.png and test/<class>/*.png, or only <class>/*.png."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nnbuild.config.names import TRAIN, split_named
from nnbuild.data import decoding, metadata, preprocessing
from nnbuild.data.arrays import Raw, assemble, slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.file_tree import File, files_below, subfolders
from nnbuild.data.labels import by_value, normalized
from nnbuild.data.locations import Location
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.errors import DataError

_MAX_NAMED = 3


class _Examples(NamedTuple):
    """Pictures of a split.

    Attributes:
        files: Paths, ordered by class.
        labels: Label of each picture.
        skipped: Files that are not pictures.
    """

    files: list[Path]
    labels: list[int]
    skipped: list[Path]


def find_files(location: Location) -> Sequence[File]:
    """Return all files of a folder or a glob, if there is a picture among them.

    In training, the files that are not pictures are refused or skipped; in scoring, they are rows
    that cannot be scored.
    """
    return [] if location.suffixes.isdisjoint(preprocessing.SUFFIXES) else location.files


def load(path: Path, options: ReadOptions = DEFAULT) -> Dataset:
    """Read a dataset from pictures in a folder for each class.

    The classes are the names of the folders in order, numbers by value; class folders may have
    subfolders. Splits are the folders `train`, `test` and `val`, and their synonyms, in any case;
    see `nnbuild.config.names`. Without preprocessing, all pictures must have the same size and
    channels. Without a test split, a sixth of the images is held out. `nnbuild.data.file_tree`
    says which files are ignored.

    Raises:
        DataError: There are no classes, a class has no files, a file is not a picture, or the
            pictures differ in size.
    """
    splits = _split_folders(path)
    classes = {split: _class_folders(folder) for split, folder in splits.items()}
    files = [each for each in files_below(path) if not _is_metadata(each.path, options)]
    class_names = sorted(classes[TRAIN], key=by_value)
    for split, folders in classes.items():
        if unknown := sorted(set(folders) - set(class_names)):
            raise DataError(
                f"{splits[split]}: has class {unknown[0]!r}, which {splits[TRAIN].name}/ lacks; "
                "expected the same classes"
            )
    examples = {
        split: _examples(_by_class(files, path, folders, options), class_names, options)
        for split, folders in classes.items()
    }
    if not examples[TRAIN].files:
        loose = _count_loose(path, splits, files)
        found = f"{loose} picture(s), but none in a folder of its class" if loose else "no pictures"
        raise DataError(
            f"{path}: {found}; expected train/<class>/*.png and test/<class>/*.png, or "
            "<class>/*.png, or instead of the folder a CSV or Parquet file of paths and labels"
        )
    pictures = options.picture_reader()
    arrays: dict[str, Any] = {}
    kept: dict[str, pa.Table] = {}
    shape: tuple[int, ...] | None = None
    for split, of_split in examples.items():
        if not of_split.files:
            raise DataError(f"{splits[split]}: no pictures; add them, or remove the folder")
        images, rows = pictures.read_files(of_split.files, shape)
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = np.array(of_split.labels, np.int16)[rows]
        if options.metadata is not None:
            files_read = [of_split.files[row] for row in rows]
            kept[split] = metadata.of_pictures(options.metadata, options.keep, path, files_read)
        shape = images.shape[1:]
    pictures.require_few_errors(path)
    dataset = assemble(
        Raw(**arrays, kept=kept),
        name=slug(path),
        source=str(path) + _note(path, splits, examples, files),
        where=path,
        class_names=class_names,
        pixel_max=decoding.WHITE,
        test_split=options.hold_out,
        part=options.part,
    )
    return replace(dataset, unreadable=tuple(pictures.errors))


def _is_metadata(path: Path, options: ReadOptions) -> bool:
    """Return whether a file in the folder is the table of the metadata, not a picture."""
    about = options.metadata
    return about is not None and path.name == about.name and about.exists() and path.samefile(about)


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folder of each split; without `train`, the whole folder is for training."""
    splits: dict[str, Path] = {}
    folders = subfolders(path)
    for name in folders:
        split = split_named(name)
        if split in splits:
            raise DataError(
                f"{path}: {splits[split].name} and {name} are both named after the {split} split; "
                "keep one of them"
            )
        if split is not None:
            splits[split] = path / name
    if TRAIN in splits and subfolders(splits[TRAIN]):  # otherwise `train` is a class, like `bus`
        return {TRAIN: splits.pop(TRAIN), **splits}
    if splits and len(splits) == len(folders):
        raise DataError(f"{path}: has {', '.join(folders)} and no train/; add the training images")
    return {TRAIN: path}


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each class by its name in composed Unicode form (NFC)."""
    folders: dict[str, Path] = {}
    for name in subfolders(folder):
        if normalized(name) in folders:
            raise DataError(
                f"{folder}: two folders are called {normalized(name)!r}, in different Unicode "
                "forms; merge them"
            )
        folders[normalized(name)] = folder / name
    return folders


def _by_class(
    files: Sequence[File], path: Path, folders: Mapping[str, Path], options: ReadOptions
) -> dict[str, list[File]]:
    """Return the files of each class of a split."""
    above = {folder.relative_to(path).parts: name for name, folder in folders.items()}
    depth = max(map(len, above), default=0)
    classes: dict[str, list[File]] = {name: [] for name in folders}
    for file in files:
        parts = PurePosixPath(file.name).parts
        if len(parts) > depth and parts[:depth] in above:
            classes[above[parts[:depth]]].append(file)
    empty = next((name for name, members in classes.items() if not members), None)
    if empty is not None and not options.part:
        raise DataError(f"{folders[empty]}: an empty folder; expected the pictures of a class")
    return classes


def _examples(
    files: Mapping[str, Sequence[File]], class_names: Sequence[str], options: ReadOptions
) -> _Examples:
    """Return the pictures of a split with their labels."""
    examples = _Examples([], [], [])
    for label, name in enumerate(class_names):
        for file in files.get(name, ()):  # a test split without a class fails a data check
            if preprocessing.is_picture(file.name, options.preprocessing):
                examples.files.append(file.path)
                examples.labels.append(label)
            elif options.skip_other_files:
                examples.skipped.append(file.path)
            else:
                raise DataError(
                    f"{file.path}: {preprocessing.not_a_picture(options.preprocessing)}; remove "
                    "it, or set dataset.other_files to skip"
                )
    return examples


def _count_loose(path: Path, splits: Mapping[str, Path], files: Sequence[File]) -> int:
    """Count the pictures outside the class folders."""
    depth = 1 if splits[TRAIN] == path else 2
    return sum(decoding.has_ending(each.name) and each.name.count("/") < depth for each in files)


def _note(
    path: Path,
    splits: Mapping[str, Path],
    examples: Mapping[str, _Examples],
    files: Sequence[File],
) -> str:
    """Describe the files that were not read, for the source of the dataset."""
    note = ""
    if loose := _count_loose(path, splits, files):
        note += f"; {loose} picture(s) outside the class folders not read"
    skipped = sum(len(each.skipped) for each in examples.values())
    if skipped:
        note += f"; {skipped} file(s) that are not pictures skipped"
    if splits[TRAIN] != path:
        read = {folder.name for folder in splits.values()}
        unread = [name for name in subfolders(path) if name not in read]
        if unread:
            more = ", …" * (len(unread) > _MAX_NAMED)
            note += f"; not read, not named after a split: {', '.join(unread[:_MAX_NAMED])}{more}"
    return note
