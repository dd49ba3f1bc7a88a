"""Columns of a source that describe its images, such as the site or the camera.

They are kept as texts, a date as `2026-11-26` and a truth value as `true`, so that a column has one
type in all runs. A missing value stays missing.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.data import archives
from nnbuild.errors import DataError, suggestion

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Delimiter of each kind of text file, by its suffix."""

PATHS = ("path", "file", "file_name", "filename", "image_path")
"""Names of the column with the path of a picture, by preference."""

_MAX_NAMED = 20


def require_columns(names: Sequence[str], keep: Sequence[str], where: object) -> None:
    """Refuse columns that a source does not have.

    Args:
        names: Columns of the source.
        keep: Columns to keep.
        where: Path for the message.

    Raises:
        DataError: A column is missing, or there are two of its name.
    """
    for name in keep:
        if names.count(name) != 1:
            problem = "two columns are called" if name in names else "no column"
            raise DataError(
                f"{where}: {problem} {name!r}, which dataset.keep names; "
                f"{suggestion(name, names[:_MAX_NAMED])}"
            )


def as_texts(table: pa.Table, where: object) -> pa.Table:
    """Return columns as texts.

    Raises:
        DataError: A column has lists, structs or bytes.
    """
    return pa.table(
        {name: _as_text(table[name], name, where) for name in table.column_names},
        schema=schema_of(table.column_names),
    )


def schema_of(names: Iterable[str]) -> pa.Schema:
    """Return the schema of kept columns."""
    return pa.schema([pa.field(name, pa.string()) for name in names])


def _as_text(column: pa.ChunkedArray, name: str, where: object) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataError(
            f"{where}: column {name!r}, which dataset.keep names, is {kind}; expected texts, "
            "numbers, dates or truth values"
        )
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{where}: column {name!r}, which dataset.keep names, cannot be read as text ({kind}); "
            "convert it"
        ) from error


def from_cells(columns: dict[str, list[str]]) -> pa.Table:
    """Return the columns of a text file; an empty cell is missing."""
    cells = {name: [cell or None for cell in values] for name, values in columns.items()}
    return pa.table(cells, schema=schema_of(cells))


def of_pictures(
    metadata: Path, keep: Sequence[str], folder: Path, pictures: Sequence[Path]
) -> pa.Table:
    """Return the kept columns of pictures in a folder, by a table of their paths.

    Args:
        metadata: CSV, TSV or Parquet file with a column `path`, relative to the folder.
        keep: Columns to keep.
        folder: Folder of the dataset.
        pictures: Paths of the pictures.

    Returns:
        A row for each picture; missing values for a picture that the file does not have.

    Raises:
        DataError: The file is missing or damaged, lacks a column, has a path twice, or has none of
            the pictures.
    """
    table = _read(metadata, keep)
    name, *_ = table.column_names
    if table[name].null_count:
        raise DataError(
            f"{metadata}: {table[name].null_count} of {len(table)} rows have no {name}; add the "
            "paths, or remove the rows"
        )
    paths = [PurePosixPath(each).as_posix() for each in table[name].to_pylist()]
    rows = {path: number for number, path in enumerate(paths)}
    if len(rows) < len(paths):
        twice = next(path for number, path in enumerate(paths) if rows[path] != number)
        raise DataError(f"{metadata}: has {twice!r} twice; keep one of the rows")
    wanted = [rows.get(each.relative_to(folder).as_posix()) for each in pictures]
    if pictures and not any(number is not None for number in wanted):
        example = pictures[0].relative_to(folder).as_posix()
        raise DataError(
            f"{metadata}: has a row for none of the pictures, of {example!r} for example; expected "
            f"paths relative to {folder}"
        )
    return table.select(list(keep)).take(pa.array(wanted, pa.int64()))


def _read(path: Path, keep: Sequence[str]) -> pa.Table:
    """Return the column of paths, and those to keep."""
    archives.require_regular(path)
    try:
        if path.suffix.lower() in DELIMITERS:
            table = _read_text(path)
        else:
            with pq.ParquetFile(path) as file:
                table = file.read()
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: not readable as CSV, TSV or Parquet ({archives.reason_of(error)[:200]}); "
            "write it again"
        ) from error
    names: list[Any] = table.column_names
    name = next((name for name in PATHS if name in names), None)
    if name is None:
        raise DataError(
            f"{path}: no column 'path' among {', '.join(names[:_MAX_NAMED]) or 'none'}; expected "
            "the path of each picture"
        )
    require_columns(names, (name, *keep), path)
    return as_texts(table.select(list(dict.fromkeys((name, *keep)))), path)


def read_lines(path: Path) -> list[list[str]]:
    """Return the cells of each line of a CSV or TSV file; an empty line has none.

    Raises:
        DataError: The file is missing, or is not an ordinary file.
        UnicodeDecodeError: It is not in UTF-8.
        csv.Error: It is not such a file.
    """
    with archives.open_regular(path) as file, archives.read_errors_as_data_errors(path):
        content = file.read()
    text = io.StringIO(content.decode("utf-8-sig"), newline="")
    # Strictly: otherwise a quote that is not closed takes in the rest of the file.
    return list(
        csv.reader(
            text, delimiter=DELIMITERS[path.suffix.lower()], skipinitialspace=True, strict=True
        )
    )


def _read_text(path: Path) -> pa.Table:
    header, *lines = [each for each in read_lines(path) if each] or [[]]
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header):
            raise ValueError(f"row {number} has {len(cells)} values, expected {len(header)}")
    require_columns(header, list(dict.fromkeys(header)), path)
    return from_cells(
        {name: [cells[place] for cells in lines] for place, name in enumerate(header)}
    )
