"""Read and write one Parquet file of a table, strictly by its schema and atomically."""

from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.errors import StoreError, one_line
from nnbuild.store import schemas
from nnbuild.store.filesystem import (
    atomic_write,
    is_remote,
    os_errors_as_store_errors,
    write_bytes,
)


def write_table(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Write a table.

    Raises:
        StoreError: The table does not have the schema, or cannot be written.
    """
    with atomic_write(path) as temporary:
        pq.write_table(schemas.validate(table, schema), temporary, compression="zstd")


def publish_table(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Write a table to its place in a store, which may be remote; see `write_table`."""
    if not is_remote(path):
        write_table(path, table, schema)
        return
    content = BytesIO()
    pq.write_table(schemas.validate(table, schema), content, compression="zstd")
    write_bytes(path, content.getvalue())


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a table.

    Raises:
        StoreError: The file is missing or damaged, or does not have the schema.
    """
    with os_errors_as_store_errors(f"read {path}"):
        try:
            with path.open("rb") as file:  # opened once: it may be replaced in the meantime
                table = pq.ParquetFile(file).read()
        except pa.ArrowException as error:
            raise StoreError(
                f"cannot read {path}: {one_line(error)}; restore it from a copy"
            ) from error
    schemas.require_version(table.schema, str(path))
    return schemas.validate(table, schema)
