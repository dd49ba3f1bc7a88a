"""SQL over the tables: DuckDB sees the rows of committed runs and jobs, and nothing else of the machine."""

from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from nnbuild import schemas
from nnbuild.errors import ConfigError, StoreError
from nnbuild.store import reading
from nnbuild.store.files import explained
from nnbuild.store.remote import is_remote
from nnbuild.store.store import Store

# Before the statement runs: no file, no network, no extension, no Python variable, and no way back.
_CLOSED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}


def query(store: Store, sql: str) -> Any:
    """The answer to one SELECT over the store's tables, each of which is a view of its name.

    Args:
        store: what is asked; it is only read.
        sql: one statement.

    Returns:
        An Arrow table.

    Raises:
        ConfigError: it does not parse, is no SELECT, or asks for what there is not; the message is DuckDB's.
        StoreError: a table cannot be read.
    """
    with duckdb.connect() as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                kinds = ", ".join(each.type.name for each in statements) or "nothing"
                raise ConfigError(
                    f"the SQL is {kinds}, expected one SELECT; the tables are only read"
                )
            for name in _named(sql):
                connection.register(name, _rows(store, name))
            for setting, value in _CLOSED.items():
                connection.execute(f"SET {setting} = {value}")
            return connection.sql(statements[0].query).to_arrow_table()
        except duckdb.Error as error:
            told = " ".join(str(error).split())
            raise ConfigError(
                f"DuckDB refuses the SQL: {told[:500]}; the tables are {_names()}"
            ) from error
        except pa.ArrowException as error:
            raise StoreError(
                f"cannot read the tables of {store.root}: {error}; restore them from a copy"
            ) from error


def _named(sql: str) -> list[str]:
    """The tables that a statement may ask for: opening one means to look into each of its files."""
    return [name for name in schemas.TABLES if name in sql.lower()] or list(schemas.TABLES)


def _names() -> str:
    return ", ".join(sorted(schemas.TABLES))


def _rows(store: Store, name: str) -> Any:
    """The committed rows of a table, read as far as the statement needs them."""
    key, folders = reading.committed_parts(store, name)
    with explained(f"read table {name}"):
        files = [
            path
            for _, folder in folders
            for path in sorted(folder.iterdir())
            if path.suffix == ".parquet"
        ]
        if not files:
            schema = schemas.FIXED.get(name, schemas.predictions(2))
            return reading.keyed(key, "", schema.empty_table())
        partitioning = ds.partitioning(pa.schema([(key, pa.string())]), flavor="hive")
        paths, filesystem = [str(path) for path in files], None
        if is_remote(files[0]):
            paths, filesystem = [path.path for path in files], files[0].fs
        found = [
            ds.dataset(path, filesystem=filesystem, partitioning=partitioning) for path in paths
        ]
        for path, each in zip(paths, found, strict=True):
            schemas.require_version(each.schema, path)
        schema = pa.unify_schemas([each.schema for each in found])
        return ds.dataset(paths, schema=schema, filesystem=filesystem, partitioning=partitioning)
