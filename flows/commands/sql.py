"""`nnbuild sql`: one SELECT over the store's tables."""

import csv as csv_format
import sys
from pathlib import Path

import pyarrow.parquet as pq

from flows.printing import jsonable, print_json, print_table
from nnbuild.errors import ConfigError
from nnbuild.store import Store
from nnbuild.store.outputs import is_stdout, output_file
from nnbuild.store.query import query


def sql(
    statement: str, root: str | None, *, csv: bool, parquet: Path | None, as_json: bool
) -> None:
    """Ask, and print the answer or write it."""
    if csv + as_json + (parquet is not None) > 1:
        raise ConfigError("--csv, --parquet and --json exclude each other; give one of them")
    store = Store.open(root)
    target = parquet and store.require_outside(parquet)
    table = query(store, statement)
    if target is not None:
        with output_file(target) as temporary:
            pq.write_table(table, temporary)
        note = sys.stderr if is_stdout(target) else sys.stdout
        print(f"{parquet}  {len(table):,} rows", file=note)
    elif csv:
        writer = csv_format.writer(sys.stdout)
        writer.writerow(table.column_names)
        writer.writerows(tuple(row.values()) for row in table.to_pylist())
    elif as_json:
        print_json(
            {"columns": table.column_names, "rows": [jsonable(row) for row in table.to_pylist()]}
        )
    else:
        print_table(table.to_pylist(), table.column_names, "no rows")
