"""Helpers for tests of labels and live accuracy: scored jobs with IDs, and files of labels."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
from score_data import ROWS, parquet, scored

from nnbuild.live import (
    Alarm,
    LabelConfig,
    ingest,
    measure,
    measure_shadows,
    measure_slices,
    paired_counts,
    record,
    write,
    write_shadows,
    write_slices,
)

TRUTH = [row % 3 for row in range(ROWS)]


def job_with_ids(store, folder, name="ids", *, first=0, day="2026-11-02", **config):
    """Score a Parquet file with integer IDs from `first`."""
    path = parquet(folder / f"{name}.parquet", customer=list(range(first, first + ROWS)))
    return scored(store, input=path, id_column="customer", day=day, **config)


def label_file(path, **columns):
    """Write a Parquet file of labels."""
    pq.write_table(pa.table(columns), path)
    return path


def labelled(store, path, now=None, **config):
    """Add the labels of a file, folder or glob."""
    return ingest(LabelConfig(input=str(path), **config), store.root, now=now)


def labels_of(store):
    """Return the rows of `labels`, without the ID of their set."""
    return store.read_table("labels").drop_columns("label_id").to_pylist()


def watched(store):
    """Compute live accuracy, also of shadows, and raise an alarm, so that the tables exist."""
    performance = measure(store)
    write(store, performance, "day")
    write_slices(store, measure_slices(store, "predicted"), "predicted", "day")
    write_shadows(store, measure_shadows(store, paired_counts(store)), "day")
    run_id = store.run_ids()[-1]
    alarm = Alarm(run_id, True, None, 9, 0.5, 0.9, 0.8, 300.0, 200.0)  # noqa: FBT003
    assert record(store, [alarm], now=datetime.now(UTC)) == [alarm]
    return performance
