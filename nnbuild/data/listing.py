"""Read datasets from a table of files: CSV, TSV or Parquet with the columns `path` and `label`.

Paths are relative to the folder of the table. A column `split` may name the split of each row.
Other columns are ignored, except those that `dataset.keep` names.
"""

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.config.names import TRAIN, split_named
from nnbuild.data import archives, arrow_images, decoding
from nnbuild.data.arrays import Raw, assemble, slug
from nnbuild.data.dataset import Dataset
from nnbuild.data.file_states import states_of
from nnbuild.data.file_tree import fingerprint, is_local
from nnbuild.data.metadata import (
    DELIMITERS,
    PATHS,
    as_texts,
    from_cells,
    read_lines,
    require_columns,
)
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.data.parquet import errors_as_data_errors, require_readable_metadata
from nnbuild.errors import DataError

_SPLIT = "split"
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.0*)?")
_BAD_TABLE = (pa.ArrowException, OSError, ValueError, csv.Error, DataError)


class _Rows(NamedTuple):
    """Rows of a table of files.

    Attributes:
        paths: Path of each picture, relative to the folder of the table.
        labels: Label of each picture, in a format of `nnbuild.data.labels.encode`.
        splits: Name of the split of each picture; None if the table has no such column.
        kept: Columns that describe the pictures.
    """

    paths: list[str]
    labels: NDArray[Any]
    splits: list[str] | None
    kept: pa.Table


def load_text(path: Path, options: ReadOptions = DEFAULT) -> Dataset:
    """Read a dataset from a CSV or TSV file.

    Raises:
        DataError: The file is damaged or lacks a column, a row is incomplete, a picture is missing
            or unreadable, or the pictures differ in size.
    """
    try:
        lines = read_lines(path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not readable as a table in UTF-8 ({archives.reason_of(error)}); "
            "write it again"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{path}: not readable as a table ({archives.reason_of(error)}); close its quotes, or "
            "write it again"
        ) from error
    header, *rows = lines or [[]]
    return _dataset(path, _from_lines(header, rows, path, options), options)


def is_text(path: Path) -> bool:
    """Return whether a file is a CSV or TSV file by its suffix."""
    return _suffix(path) in DELIMITERS


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _from_lines(
    header: Sequence[str], lines: Sequence[Sequence[str]], where: Path, options: ReadOptions
) -> _Rows:
    path, label, split = _columns(header, where, options)
    require_columns(header, options.keep, where)
    numbers = [header.index(name) for name in (path, label, *([split] if split else []))]
    kept: dict[str, list[str]] = {name: [] for name in options.keep}
    columns: list[list[str]] = [[] for _ in numbers]
    for line, cells in enumerate(lines, 2):
        if not cells:
            continue  # an empty line, as at the end of the file
        if len(cells) != len(header):
            raise DataError(
                f"{where}, line {line}: {len(cells)} values, expected {len(header)} as in the "
                "header; fix the line"
            )
        for column, number in zip(columns, numbers, strict=True):
            if not cells[number].strip():
                raise DataError(
                    f"{where}, line {line}: no {header[number]!r}; fill it in, or remove the line"
                )
            column.append(cells[number])
        for name, values in kept.items():
            values.append(cells[header.index(name)])
    labels = np.array(_labels(columns[1]), dtype=object)
    splits = [each.strip() for each in columns[2]] if split else None
    return _Rows(columns[0], labels, splits, from_cells(kept))


def _labels(cells: Sequence[str]) -> list[str]:
    """Return labels without blanks at their ends, and whole numbers without decimals.

    `3`, `3.0` and `3 ` are one class in a table that a spreadsheet or pandas has written.
    """
    labels = [each.strip() for each in cells]
    if all(map(_WHOLE_NUMBER.fullmatch, labels)):
        return [each.partition(".")[0] for each in labels]
    return labels


def names_files(path: Path, options: ReadOptions = DEFAULT) -> bool:
    """Return whether a Parquet file is a table of files: it has paths instead of images."""
    try:
        with errors_as_data_errors(path):
            schema = pq.read_schema(path)
    except DataError:
        return False  # reading it as images reports the error
    if options.image_column is not None:
        known = options.image_column in schema.names
        return known and arrow_images.is_text(schema.field(options.image_column).type)
    if any(name in schema.names for name in arrow_images.IMAGE_NAMES):
        return False
    name = next((name for name in PATHS if name in schema.names), None)
    return name is not None and arrow_images.is_text(schema.field(name).type)


def load_parquet(path: Path, options: ReadOptions = DEFAULT) -> Dataset:
    """Read a dataset from a Parquet file for which `names_files` is true; see `load_text`."""
    require_readable_metadata([path])
    with errors_as_data_errors(path), pq.ParquetFile(path) as file:
        path_column, label, split = _columns(file.schema_arrow.names, path, options)
        require_columns(file.schema_arrow.names, options.keep, path)
        arrow_images.require_labels(file.schema_arrow.field(label).type, path, label)
        own = [path_column, label, *([split] if split else [])]
        table = file.read(columns=list(dict.fromkeys([*own, *options.keep])))
    for name in own:
        arrow_images.require_values(table[name], name, 0, path)
    rows = _Rows(
        table[path_column].to_pylist(),
        arrow_images.labels(table[label], 0, path, label),
        [str(each) for each in table[split].to_pylist()] if split else None,
        as_texts(table.select(list(options.keep)), path),
    )
    return _dataset(path, rows, options)


def fingerprint_of_source(
    path: Any, *, metadata: Path | None = None, image_column: str | None = None
) -> str | None:
    """Return a digest that changes when the files of a source do, without reading their content.

    They are the files at a path, those that a table at the path names, and the metadata.

    Args:
        path: Local file or folder, or a path of universal_pathlib.
        metadata: File with the metadata; None if there is none.
        image_column: Column of the paths in a table; None to look for the usual names.

    Returns:
        A digest as of `nnbuild.data.file_tree.fingerprint`, and equal to it if there is nothing
        but the files at the path.

    Raises:
        DataError: See `nnbuild.data.file_tree.files_below`.
    """
    digest = fingerprint(path)
    if digest is None:
        return None
    if metadata is not None:
        state = fingerprint(metadata) if metadata.is_file() else None  # an error when it is read
        digest = hashlib.sha256(f"{digest} {state}".encode()).hexdigest()
    if pictures := _named_files(path, image_column):
        states = states_of([str(each) for each in pictures])
        digest = hashlib.sha256(f"{digest} {states.digest}".encode()).hexdigest()
    return digest


def _named_files(path: Any, image_column: str | None) -> list[Path]:
    """Return the files that a local table names; none for other sources, and damaged tables."""
    if not is_local(path) or not path.is_file():
        return []
    options = ReadOptions(image_column=image_column)
    try:
        if is_text(path):
            header, *rows = read_lines(path) or [[]]
            place = header.index(_path_column(header, path, options))
            names = [cells[place] for cells in rows if place < len(cells)]
        elif names_files(path, options):
            require_readable_metadata([path])
            with pq.ParquetFile(path) as file:
                name = _path_column(file.schema_arrow.names, path, options)
                names = file.read(columns=[name])[name].drop_null().to_pylist()
        else:
            return []
        return [_file(path, name) for name in names]
    except _BAD_TABLE:
        return []  # reading the table says what is wrong with it


def _columns(
    names: Sequence[str], where: Path, options: ReadOptions
) -> tuple[str, str, str | None]:
    """Return the names of the columns of paths, labels and, if there is one, splits."""
    path = _path_column(names, where, options)
    label = arrow_images.label_column(names, options.label_column, where)
    arrow_images.require_single(names, path, where)
    return path, label, _SPLIT if _SPLIT in names else None


def _path_column(names: Sequence[str], where: Path, options: ReadOptions) -> str:
    path = options.image_column or next((name for name in PATHS if name in names), None)
    if path is not None and path in names:
        return path
    if len(names) == 1 and (mark := next((each for each in ";\t|" if each in names[0]), None)):
        raise DataError(
            f"{where}: a single column {names[0]!r}; expected columns separated by commas, or in a "
            f".tsv by tabs: replace {mark!r}"
        )
    raise DataError(
        f"{where}: no column {path or PATHS[0]!r} among {', '.join(names[:20]) or 'none'}; "
        f"expected {' or '.join(map(repr, PATHS))}, or set image_column to its name"
    )


def _dataset(path: Path, rows: _Rows, options: ReadOptions) -> Dataset:
    if not rows.paths:
        raise DataError(f"{path}: contains no rows; expected a path and a label in each")
    pictures = options.picture_reader()
    arrays: dict[str, Any] = {}
    kept: dict[str, pa.Table] = {}
    shape: tuple[int, ...] | None = None
    for split, numbers in _by_split(path, rows):
        files = [_file(path, rows.paths[number]) for number in numbers]
        try:
            images, positions = pictures.read_files(files, shape)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = rows.labels[numbers][positions]
        if options.keep:
            kept[split] = rows.kept.take(pa.array(numbers[positions], pa.int64()))
        shape = images.shape[1:]
    pictures.require_few_errors(path)
    dataset = assemble(
        Raw(**arrays, kept=kept),
        name=slug(path),
        source=str(path),
        where=path,
        pixel_max=decoding.WHITE,
        test_split=options.hold_out,
        part=options.part,
    )
    return replace(dataset, unreadable=tuple(pictures.errors))


def _file(table: Path, name: str) -> Path:
    if "\0" in name:
        raise DataError(f"{table}: path {name!r} contains a null character; remove it")
    return table.parent / name


def _by_split(path: Path, rows: _Rows) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Yield each split, training first, with the numbers of its rows."""
    if rows.splits is None:
        yield TRAIN, np.arange(len(rows.paths))
        return
    splits = {name: split_named(name) for name in dict.fromkeys(rows.splits)}
    if unknown := next((name for name, split in splits.items() if split is None), None):
        raise DataError(
            f"{path}: split {unknown!r}; expected train, validation or test in the column {_SPLIT}"
        )
    if TRAIN not in splits.values():
        raise DataError(f"{path}: no row is of the split train; add the training pictures")
    of_rows = np.array([splits[name] for name in rows.splits])
    for split in (TRAIN, *sorted({str(each) for each in of_rows} - {TRAIN})):
        yield split, np.flatnonzero(of_rows == split)
