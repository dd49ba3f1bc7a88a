"""Test that pandas, pyarrow, Polars and DuckDB read every table, also during a commit."""

import shutil
from collections import Counter

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from label_data import label_file, labelled, watched
from score_data import parquet, scored
from small_data import run_config

from nnbuild.pipeline.run import retrain
from nnbuild.runtime import fault_injection
from nnbuild.store import Store, schemas

# Only data in days have the first, and only data with columns to keep the second.
TABLES = sorted({*schemas.TABLES} - {"dataset_parts", "slices"})
SOME_RUNS = {"champions", "live", "live_alarms", "live_shadows", "live_slices"}
"""Tables in which not every run has rows."""
KEYS = ("run_id", "score_id", "label_id")


def by_duckdb(folder):
    query = f"select * from read_parquet('{folder}/*/*', hive_partitioning = true)"  # noqa: S608
    return duckdb.sql(query).to_arrow_table()


READERS = {
    "pyarrow": lambda folder: ds.dataset(folder, partitioning="hive").to_table(),
    "pandas": lambda folder: pa.Table.from_pandas(pd.read_parquet(folder, dtype_backend="pyarrow")),
    "polars": lambda folder: (
        pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).collect().to_arrow()
    ),
    "duckdb": by_duckdb,
}


key_of = schemas.partition_key


def read(reader, store, name):
    """Read a table with one of the readers, with the key first and uniform text and times."""
    found = READERS[reader](store.root / "tables" / name)
    key = key_of(name)
    columns = [key, *(each for each in found.column_names if each != key)]
    return pa.table({column: found[column].cast(plain(found[column].type)) for column in columns})


def plain(kind):
    """Convert text types, which differ between readers, and DuckDB's times to one form."""
    if (
        pa.types.is_dictionary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    ):
        return pa.string()
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz else kind


@pytest.fixture(scope="module")
def every_table(_three_runs, tmp_path_factory):
    """A store in which no table is missing; do not modify it."""
    folder = tmp_path_factory.mktemp("every-table")
    store = Store(shutil.copytree(_three_runs[0], folder / "store"))
    scored(store, input=parquet(folder / "input.parquet"), shadow="newest")
    labelled(store, label_file(folder / "labels.parquet", id=[1, 2], label=[0, 1]))
    watched(store)
    assert {each.name for each in (store.root / "tables").iterdir()} == set(TABLES)
    return store


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("reader", READERS)
def test_readers_see_schema_types(every_table, reader, name):
    found, expected = read(reader, every_table, name), every_table.read_table(name)
    assert found.column_names == expected.column_names
    assert [field.type for field in found.schema] == [field.type for field in expected.schema]
    assert found.to_pylist() == expected.to_pylist()


def test_readers_during_commit_see_whole_runs(every_table, tmp_path, small_folder, monkeypatch):
    store, seen = Store(shutil.copytree(every_table.root, tmp_path / "store")), []

    def look(point):
        if not point.startswith(("commit:", "champion:", "score:", "label:")):
            return
        for reader in READERS:
            for name in TABLES:
                ids = Counter(read(reader, store, name)[key_of(name)].to_pylist())
                seen.append((point, reader, name, ids))
        committed = {key: set(store.committed_ids(key)) for key in KEYS}
        for at, reader, name, ids in seen[-len(READERS) * len(TABLES) :]:
            if name not in SOME_RUNS:
                assert ids.keys() >= committed[key_of(name)], (at, reader, name)
            if name in {"runs", "score_jobs", "label_jobs"}:
                assert ids.keys() == committed[key_of(name)], (at, reader, name)

    monkeypatch.setattr(fault_injection, "failpoint", look)
    retrain(run_config(small_folder, seed=2), store.root)
    path = parquet(tmp_path / "input.parquet", group=30)
    done = scored(store, input=path, shadow=store.run_ids()[0])
    path = tmp_path / "labels.parquet"
    labelled(store, label_file(path, id=[3], label=[0], score_id=[done.score_id]))
    monkeypatch.undo()
    whole = {name: Counter(store.read_table(name)[key_of(name)].to_pylist()) for name in TABLES}
    assert {point for point, *_ in seen} >= {
        "commit:laid-out",
        "commit:history",
        "commit:runs",
        "score:rows",
        "score:row",
        "label:labels",
        "label:label_jobs",
    }
    for point, reader, name, ids in seen:
        assert ids.items() <= whole[name].items(), (point, reader, name)
