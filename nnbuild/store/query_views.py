"""Views in DuckDB of the committed rows of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from nnbuild.store import schemas, views
from nnbuild.store.store import Store


def register(
    connection: Any,
    store: Store,
    name: str,
    *,
    only: Sequence[str] | None = None,
    alias: str | None = None,
) -> list[views.Part]:
    """Register the committed rows of a table as a view that is read lazily.

    Args:
        connection: DuckDB connection.
        store: Store to read.
        name: Name of the table.
        only: IDs of the runs or jobs; all of them if not given.
        alias: Name of the view; that of the table if not given.

    Returns:
        The files with the rows.
    """
    parts = views.committed_parts(store, name, only)
    alias = alias or name
    if not parts:
        schema = schemas.STATIC_SCHEMAS.get(name, schemas.predictions(2))
        key = schemas.partition_key(name)
        connection.register(alias, views.keyed(key, "", schema.empty_table()))
        return parts
    view = views.TableView(name, parts)
    groups: dict[Any, list[views.Part]] = {}
    for schema, found in view.scans():
        groups.setdefault(_readable(schema), []).extend(found)
    if len(groups) == 1:
        schema, found = groups.popitem()
        connection.register(alias, views.dataset(found, schema))
        return parts
    # By position: DuckDB treats names that differ only by case as one name.
    columns = [f"#1 AS {quoted(view.key)}"]
    for place, (column, kind) in enumerate(view.types.items(), start=2):
        value = f"CAST(#{place} AS VARCHAR)" if kind is None else f"#{place}"
        columns.append(f"{value} AS {quoted(column)}")
    selects = []
    for number, (schema, found) in enumerate(groups.items(), start=1):
        connection.register(f"{alias} part {number}", views.dataset(found, schema))
        # The names are quoted, since they come from the files of the store.
        selects.append(f'SELECT {", ".join(columns)} FROM "{alias} part {number}"')
    union = " UNION ALL ".join(selects)
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(alias)} AS {union}")
    return parts


PART = '"nnbuild: part"'  # hardly the name of a column that a user carries through
_FILE = "nnbuild: file"


def register_numbered(
    connection: Any,
    store: Store,
    name: str,
    numbers: Mapping[str, int],
    *,
    alias: str,
    columns: Sequence[str],
) -> list[str]:
    """Register the rows of some runs or jobs, with a number in the column `PART` for each.

    DuckDB reads local files itself, many times faster than through Arrow: the number of a file is
    one value for all of its rows, and its columns may differ from those of other files.

    Args:
        connection: DuckDB connection.
        store: Store to read.
        name: Name of the table.
        numbers: Number of each run or job, by its ID.
        alias: Name of the view.
        columns: Columns of the view; those that no file has are left out.

    Returns:
        The columns that the view has.
    """
    parts = views.committed_parts(store, name, list(numbers)) if numbers else []
    files = [str(each.path) for each in parts]
    if not files or store.is_remote or any(set(each) & set("*?[") for each in files):
        source, key, values = quoted(f"{alias} rows"), schemas.partition_key(name), list(numbers)
        register(connection, store, name, only=values, alias=f"{alias} rows")
    else:
        listed = ", ".join("'{}'".format(each.replace("'", "''")) for each in files)
        source = (
            f"read_parquet([{listed}], filename = '{_FILE}', union_by_name = true, "
            "hive_partitioning = false)"
        )
        key, values = _FILE, files
        numbers = {path: numbers[part.value] for path, part in zip(files, parts, strict=True)}
    known = {row[0] for row in connection.execute(f"describe from {source}").fetchall()}
    found = [each for each in columns if each in known]
    table = pa.table({"key": pa.array(values, pa.string()), "part": [numbers[v] for v in values]})
    connection.register(f"{alias} parts", table)
    selected = "".join(f"s.{quoted(each)}, " for each in found)
    connection.execute(
        f"create temp view {alias} as select {selected}p.part as {PART} "
        f"from {source} s "
        f'join "{alias} parts" p on p.key = s.{quoted(key)}'
    )
    return found


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def _readable(schema: pa.Schema) -> pa.Schema:
    """Return a schema with types that DuckDB supports."""
    for place, field in enumerate(schema):
        if pa.types.is_float16(field.type):
            schema = schema.set(place, field.with_type(pa.float32()))
        elif pa.types.is_decimal256(field.type):
            schema = schema.set(place, field.with_type(pa.string()))
    return schema
