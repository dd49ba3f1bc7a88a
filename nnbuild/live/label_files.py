"""Find the files of labels at an address, and read their IDs, labels and times."""

import csv
import fnmatch
import glob
import gzip
import hashlib
import io
import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pydantic import Field

from nnbuild.config.sections import Section
from nnbuild.data import file_tree
from nnbuild.data.archives import reason_of
from nnbuild.data.arrow_images import is_text
from nnbuild.errors import DataError, one_line, suggestion
from nnbuild.runtime.regular_files import read_regular
from nnbuild.runtime.text import encodable
from nnbuild.store.filesystem import (
    absolute_address,
    is_remote,
    is_url,
    open_root,
    os_errors_as_store_errors,
)

_ENDINGS = (".parquet", ".parq", ".csv", ".csv.gz")
_PARQUET = b"PAR1"
_GZIP = b"\x1f\x8b"
_MAX_BYTES = 2**31
_MAX_EXACT = 2.0**53  # up to which a float64 is one integer
_DATE = re.compile(r"\{date(?::([^{}]*))?\}")
_DIRECTIVE = re.compile(r"%.")
_DIGITS = {"%Y": r"\d{4}", "%y": r"\d\d", "%m": r"\d\d?", "%d": r"\d\d?", "%j": r"\d{1,3}"}
_USUAL_NAMES = {
    "id_column": ("example_id", "example_key", "path", "id"),
    "label_column": ("label", "labels", "target", "class"),
    "time_column": ("observed_at",),
}
_JOB_NAME = "score_id"

ROWS = pa.schema(
    [
        pa.field("source_row", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("number", pa.int64()),
        pa.field("asked", pa.string()),
        pa.field("label", pa.string()),
        pa.field("observed_at", pa.timestamp("us", "UTC")),
        pa.field("observed_text", pa.string()),
    ]
)
"""Rows of a file: the ID as `key` (text) or `number`, the scoring job that the file names for it
(`asked`), the label as text, and the time of the observation, or the text to parse as one."""


class LabelConfig(Section):
    """Settings that decide how labels are read."""

    input: str = Field(
        min_length=1,
        description="Parquet or CSV file, folder or glob of labels; {date} stands for any day",
    )
    id_column: str | None = Field(
        None,
        min_length=1,
        description="Column of the IDs; example_id, example_key, path or id if null",
    )
    label_column: str | None = Field(
        None,
        min_length=1,
        description="Column of the labels; label, labels, target or class if null",
    )
    time_column: str | None = Field(
        None,
        min_length=1,
        description="Column of the times of observation; observed_at if null and present, "
        "otherwise the day of {date}, or the time of the ingestion",
    )

    @property
    def columns(self) -> list[str | None]:
        """Return the names of the columns that are set, in the order of the fields."""
        return [self.id_column, self.label_column, self.time_column]


class LabelFile(NamedTuple):
    """A file of labels.

    Attributes:
        path: Path of the file, local or of universal_pathlib.
        day: Day in its path, where the address has `{date}`; None without it.
        digest: SHA-256 of its content and of the names of the columns to read.
        content: Bytes of the file.
    """

    path: Any
    day: date | None
    digest: str
    content: bytes


def find(config: LabelConfig, *, required: bool = True) -> list[tuple[Any, date | None]]:
    """Return the paths of the files at an address, in order, with the day in each path.

    Raises:
        DataError: There is no Parquet or CSV file, although one is required.
    """
    address = config.input
    found: dict[str, tuple[Any, date | None]] = {}
    with os_errors_as_store_errors(f"list {address}"):
        for place, day in _places(address):
            for path in _files_at(place):
                found.setdefault(str(path), (path, day))
    if required and not found:
        raise DataError(
            f"{address}: found no labels; expected a Parquet or CSV file, a folder or a glob",
            setting="input",
            value=address,
        )
    return [found[name] for name in sorted(found)]


def _places(address: str) -> list[tuple[Any, date | None]]:
    """Return the paths that match an address, each with its day if the address has `{date}`."""
    dated = bool(_DATE.search(address))
    pattern = _DATE.sub("*", address)
    if is_url(address):
        above, _, name = pattern.partition("://")[2].partition("/")
        root: Any = open_root(f"{address.partition('://')[0]}://{above}")
    else:
        absolute = Path(pattern).absolute()
        root, name = Path(absolute.anchor), absolute.relative_to(absolute.anchor).as_posix()
    if not dated and not glob.has_magic(name):
        place = root / name
        return [(place, None)] if is_remote(place) or file_tree.path_exists(place) else []
    if not dated and not is_url(address) and file_tree.path_exists(address):
        return [(Path(address), None)]
    places = file_tree.matches(root, name)
    if not dated:
        return [(each, None) for each in places]
    days = ((each, _day_in(str(each), address)) for each in places)
    return [(each, day) for each, day in days if day is not None]


def _day_in(path: str, address: str) -> date | None:
    """Return the day that a path has in place of `{date}`; None if it is not a day."""
    formats = [match[1] or "%Y-%m-%d" for match in _DATE.finditer(address)]
    pattern = _DATE.sub("\0", absolute_address(address))
    expression = fnmatch.translate(pattern.replace("**/", "*"))
    for each in formats:
        digits = _DIRECTIVE.sub(lambda found: _DIGITS.get(found[0], ".+?"), re.escape(each))
        expression = expression.replace("\0", f"({digits})", 1)
    if (match := re.match(expression, path)) is None:
        return None
    try:
        digits, form = "\0".join(match.groups()), "\0".join(formats)
        return datetime.strptime(digits, form).replace(tzinfo=UTC).date()
    except ValueError:
        return None


def _files_at(place: Any) -> list[Any]:
    if not place.is_dir():
        return [place]
    return [file.path for file in file_tree.files_below(place) if file.name.endswith(_ENDINGS)]


def open_file(path: Any, day: date | None, config: LabelConfig) -> LabelFile:
    """Read the bytes of a file.

    Raises:
        DataError: The file is missing, too large, or cannot be read.
        StoreError: The service of a URL does not answer.
    """
    with os_errors_as_store_errors(f"read {path}"):
        try:
            content = _content(path)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: not readable ({reason_of(error)}); expected a Parquet or CSV file of "
                "labels"
            ) from error
    digest = hashlib.sha256(content)
    digest.update(json.dumps(config.columns).encode())
    return LabelFile(path, day, digest.hexdigest(), content)


def is_of_another_day(file: LabelFile, source: str, config: LabelConfig) -> bool:
    """Return whether a file has another day in its path than one with the same content."""
    day = _day_in(source, config.input) if file.day is not None else None
    return day is not None and day != file.day


def with_digest_of_day(file: LabelFile) -> LabelFile:
    """Return a file with a digest that its day is part of: two days can have the same labels."""
    digest = hashlib.sha256(f"{file.digest} {file.day}".encode()).hexdigest()
    return file._replace(digest=digest)


def _content(path: Any) -> bytes:
    if not is_remote(path):
        return read_regular(path, _MAX_BYTES)
    with path.open("rb") as file:
        content: bytes = file.read(_MAX_BYTES + 1)
    _require_size(content)
    return content


def _require_size(content: bytes) -> None:
    if len(content) > _MAX_BYTES:
        raise ValueError(f"has more than {_MAX_BYTES} bytes")


def read(file: LabelFile, config: LabelConfig, now: datetime) -> pa.Table:
    """Return the rows of a file, with the schema `ROWS`.

    Args:
        file: The file.
        config: Names of the columns.
        now: Time of the observation if neither the file nor its path has one.

    Raises:
        DataError: The file is damaged, or lacks a column, or a column has another type.
    """
    where = encodable(str(file.path))
    try:
        return _rows(file, config, now, where)
    except (pa.ArrowException, OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(
            f"{where}: not readable as labels in Parquet or CSV ({reason_of(error)[:200]}); write "
            "it again"
        ) from error


def _rows(file: LabelFile, config: LabelConfig, now: datetime, where: str) -> pa.Table:
    table, names = _table(file.content, config)
    identifier = _column(names, config, "id_column", where)
    label = _column(names, config, "label_column", where)
    key, number = _ids(table[identifier], identifier, where)
    has_times = config.time_column is not None or "observed_at" in names
    moment = _column(names, config, "time_column", where) if has_times else None
    moments, texts = _times(table, moment, file.day, now, where)
    asked = _job_ids(table, names, where)
    rows = len(table)
    columns = [
        pa.array(np.arange(rows, dtype=np.int64)),
        key,
        number,
        asked,
        _label_texts(table[label], label, where),
        moments,
        texts,
    ]
    return pa.table(columns, schema=ROWS)


def _table(content: bytes, config: LabelConfig) -> tuple[pa.Table, list[str]]:
    """Return the columns of a file that may be needed, and the names of all of them."""
    if content[:4] == _PARQUET:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = list(file.schema_arrow.names)
        return file.read([name for name in names if name in _wanted(config)]), names
    if content[:2] == _GZIP:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as unpacked:
            content = unpacked.read(_MAX_BYTES + 1)
        _require_size(content)
    return _csv(content, config)


def _wanted(config: LabelConfig) -> set[str]:
    named = {each for each in config.columns if each is not None}
    return named.union({_JOB_NAME}, *_USUAL_NAMES.values())


def _csv(content: bytes, config: LabelConfig) -> tuple[pa.Table, list[str]]:
    """Return the columns of a CSV file as text, since an ID such as 007 is not a number."""
    first = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
    header = next(csv.reader(first), [])
    wanted = [name for name in header if name in _wanted(config)]
    options = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()),
        include_columns=wanted or header[:1],
        strings_can_be_null=True,
        null_values=["", "NA", "NaN", "nan", "null", "NULL"],
    )
    return pa_csv.read_csv(pa.BufferReader(content), convert_options=options), header


def _column(names: Sequence[str], config: LabelConfig, setting: str, where: str) -> str:
    """Return the name of a column: the one that is set, or the first usual one."""
    requested, usual = getattr(config, setting), _USUAL_NAMES[setting]
    if requested is not None and requested not in names:
        raise DataError(
            f"{where}: no column {requested!r}; {suggestion(requested, names)}",
            setting=setting,
            value=requested,
        )
    found = requested or next((name for name in usual if name in names), None)
    if found is None:
        kinds = {"id_column": "IDs", "label_column": "labels"}
        shown = one_line(", ".join(names))[:200] or "none"
        raise DataError(
            f"{where}: no column of {kinds[setting]}; expected {', '.join(usual[:-1])} or "
            f"{usual[-1]}, or its name as {setting}; the columns are: {shown}",
            setting=setting,
        )
    if names.count(found) > 1:
        raise DataError(
            f"{where}: {names.count(found)} columns are called {found!r}; rename all but one",
            setting=setting,
            value=found,
        )
    return str(found)


def _ids(column: pa.ChunkedArray, name: str, where: str) -> tuple[Any, Any]:
    """Return the IDs as texts and as integers; each is null where the other is not."""
    kind, rows = column.type, len(column)
    if pa.types.is_null(kind):
        return pa.nulls(rows, pa.string()), pa.nulls(rows, pa.int64())
    if is_text(kind):
        return column.cast(pa.string()), pa.nulls(rows, pa.int64())
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return pa.nulls(rows, pa.string()), column.cast(pa.int64())
    if pa.types.is_uint64(kind) or pa.types.is_floating(kind):  # pandas, if one is missing
        return _whole_texts(column), pa.nulls(rows, pa.int64())
    raise DataError(
        f"{where}: column {name!r} is {kind}, expected integers or texts that identify the images",
        setting="id_column",
        value=name,
    )


def _job_ids(table: pa.Table, names: Sequence[str], where: str) -> Any:
    """Return the scoring job that each row names; null if there is no such column."""
    if _JOB_NAME not in names:
        return pa.nulls(len(table), pa.string())
    column = table[_JOB_NAME] if names.count(_JOB_NAME) == 1 else None
    if column is not None and (pa.types.is_null(column.type) or is_text(column.type)):
        return column.cast(pa.string())
    kind = "not unique" if column is None else column.type
    raise DataError(
        f"{where}: column {_JOB_NAME!r} is {kind}, expected one column of IDs of scoring jobs"
    )


def _label_texts(column: pa.ChunkedArray, name: str, where: str) -> Any:
    kind = column.type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return pc.utf8_normalize(_whole_texts(column), "NFC")
    raise DataError(
        f"{where}: column {name!r} is {kind}, expected class numbers or class names",
        setting="label_column",
        value=name,
    )


def _whole_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts, with whole floats as integers: pandas makes 7 to 7.0 if a value is missing."""
    if pa.types.is_floating(column.type):
        floats = column.cast(pa.float64())
        is_whole = pc.and_(
            pc.equal(floats, pc.trunc(floats)), pc.less_equal(pc.abs(floats), _MAX_EXACT)
        )
        numbers = pc.if_else(is_whole, floats, pa.scalar(None, pa.float64())).cast(pa.int64())
        # Arrow writes large floats as 1e+10.
        column = pc.coalesce(numbers.cast(pa.string()), floats.cast(pa.string()))
    texts = column.cast(pa.string())
    texts = pc.if_else(pc.equal(texts, "nan"), pa.scalar(None, pa.string()), texts)
    return pc.replace_substring_regex(texts, r"^(-?[0-9]+)\.0+$", r"\1")


def _times(
    table: pa.Table, name: str | None, day: date | None, now: datetime, where: str
) -> tuple[Any, Any]:
    """Return the times of observation, and the texts that still have to be read as times."""
    rows, kind = len(table), ROWS.field("observed_at").type
    if name is None:
        moment = now if day is None else datetime.combine(day, time(), UTC)
        return pa.repeat(pa.scalar(moment, kind), rows), pa.nulls(rows, pa.string())
    column = table[name]
    if is_text(column.type):
        return pa.nulls(rows, kind), pc.fill_null(column.cast(pa.string()), "")
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("us"))
        if column.type.tz is None:
            column = pc.assume_timezone(column.cast(pa.timestamp("us"), safe=False), "UTC")
        missing = pc.if_else(column.is_null(), "", pa.scalar(None, pa.string()))
        return column.cast(kind, safe=False), missing
    raise DataError(
        f"{where}: column {name!r} is {column.type}, expected times or texts in ISO 8601",
        setting="time_column",
        value=name,
    )
