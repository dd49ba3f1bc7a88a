"""Write the result of a query to a Parquet file."""

import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nnbuild.errors import ConfigError
from nnbuild.store.outputs import output_file
from nnbuild.store.query import Answer

_GROUP_ROWS, _GROUP_BYTES = 131_072, 64 * 2**20
_HUGE = pa.decimal128(38, 0)  # DuckDB's type for sums of integers
_INT64 = range(-(2**63), 2**63)


def write_parquet(answer: Answer, path: Path) -> int:
    """Write an answer to a Parquet file, which appears when it is complete.

    Columns of 128-bit integers, such as sums, become int64 if all of their values fit. Repeated
    names of columns get a number.

    Returns:
        Number of rows written.

    Raises:
        ConfigError: Parquet has no type for a column, or the query exceeds a limit.
        OutputError: The file cannot be written.
    """
    schema = answer.schema
    schema = pa.schema(
        [field.with_name(name) for field, name in zip(schema, answer.names, strict=True)]
    )
    _require_writable(schema)
    huge = [place for place, field in enumerate(schema) if field.type.equals(_HUGE)]
    tables = (pa.Table.from_batches([batch.rename_columns(schema.names)]) for batch in answer)
    with output_file(path) as temporary:
        if not huge:
            return _write(temporary, schema, tables)
        with tempfile.TemporaryFile(dir=temporary.parent) as scratch:
            fitting = set(huge)
            rows = _write(scratch, schema, _check_overflow(tables, fitting))
            for place in fitting:
                schema = schema.set(place, schema.field(place).with_type(pa.int64()))
            first = pq.ParquetFile(scratch)
            groups = (first.read_row_group(number) for number in range(first.num_row_groups))
            _write(temporary, schema, (table.cast(schema) for table in groups))
            return rows


def _require_writable(schema: pa.Schema) -> None:
    for field in schema:
        try:
            pq.write_table(pa.schema([field]).empty_table(), io.BytesIO())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise ConfigError(
                f"column {field.name!r} is {field.type}, which Parquet has no type for; cast it "
                "in the SELECT, for example to varchar"
            ) from error


def _check_overflow(tables: Iterable[pa.Table], fitting: set[int]) -> Iterator[pa.Table]:
    """Yield the tables, and remove columns with a value beyond int64 from the set."""
    for table in tables:
        for place in list(fitting):
            extremes = pc.min_max(table.column(place)).as_py().values()
            if any(value is not None and int(value) not in _INT64 for value in extremes):
                fitting.discard(place)
        yield table


def _write(target: Any, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables in row groups of a moderate size, and return the number of rows."""
    rows = 0
    with pq.ParquetWriter(target, schema) as writer:
        pending: list[pa.Table] = []
        for table in tables:
            rows += len(table)
            pending.append(table)
            if (
                sum(map(len, pending)) >= _GROUP_ROWS
                or sum(each.nbytes for each in pending) >= _GROUP_BYTES
            ):
                writer.write_table(pa.concat_tables(pending))
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending))
    return rows
