"""One Parquet file of a table: it keeps its schema to the letter, and stands whole or not at all."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.errors import StoreError, one_line
from nnbuild.store import schemas
from nnbuild.store.filesystem import atomic_write, os_errors_as_store_errors


def write_table(path: Path, table: Any, schema: Any) -> None:
    """Write a table.

    Raises:
        StoreError: the table is not of the schema, or cannot be written.
    """
    with atomic_write(path) as aside:
        pq.write_table(schemas.validate(table, schema), aside, compression="zstd")


def read_table(path: Path, schema: Any) -> Any:
    """Read a table.

    Raises:
        StoreError: the file is missing or damaged, or not of the schema.
    """
    with os_errors_as_store_errors(f"read {path}"):
        try:
            with path.open("rb") as file:  # once: it may be replaced while it is read
                table = pq.ParquetFile(file).read()
        except pa.ArrowException as error:
            raise StoreError(
                f"cannot read {path}: {one_line(error)}; restore it from a copy"
            ) from error
    schemas.require_version(table.schema, str(path))
    return schemas.validate(table, schema)
