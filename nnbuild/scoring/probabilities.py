"""Logits to the rows of the probability table, a batch at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.data.dataset import Split
from nnbuild.engines import Engine, Logits
from nnbuild.logits import check_logits, predict
from nnbuild.store import schemas
from nnbuild.store.filesystem import atomic_write


def batches(examples: int, batch_size: int) -> Iterator[slice]:
    """The slices that go through so many examples."""
    for start in range(0, examples, batch_size):
        yield slice(start, min(start + batch_size, examples))


def logits_of(engine: Engine, split: Split, classes: int, batch_size: int) -> Logits:
    """All logits of a split that fits in memory.

    Returns:
        float32, shape (n, classes).

    Raises:
        ContractError: what comes out is no logits, or not finite.
    """
    found = np.empty((len(split), classes), np.float32)
    for rows in batches(len(split), batch_size):
        found[rows] = check_logits(engine.logits(split.images[rows]), classes, first_row=rows.start)
    return found


def probability_table(
    logits: Logits,
    labels: NDArray[np.int16] | Any | None,
    *,
    first_row: int = 0,
    temperature: float = 1.0,
    example_ids: NDArray[np.int64] | None = None,
) -> Any:
    """Logits as rows of the `predictions` table.

    Args:
        logits: float32, shape (n, classes), finite.
        labels: int16, shape (n,), the true classes if they are known; or an Arrow array of them with nulls.
        first_row: number of the first row, which is its example_id unless `example_ids` says otherwise.
        temperature: the logits are divided by it.
        example_ids: int64, shape (n,).

    Returns:
        An Arrow table with the schema `nnbuild.store.schemas.predictions(classes)`.
    """
    rows, classes = logits.shape
    probabilities, predicted, log_prob = predict(
        logits, temperature=temperature, first_row=first_row
    )
    ids = (
        np.arange(first_row, first_row + rows, dtype=np.int64)
        if example_ids is None
        else example_ids
    )
    columns = [
        _column(ids, pa.int64()),
        _labels(labels, rows),
        _column(predicted, pa.int16()),
        _column(probabilities.max(axis=0), pa.float32()),
        _column(log_prob, pa.float32()),
        *(_column(each, pa.float32()) for each in probabilities),
    ]
    return pa.Table.from_arrays(columns, schema=schemas.predictions(classes))


def _labels(labels: Any, rows: int) -> Any:
    if labels is None:
        return pa.nulls(rows, pa.int16())
    return labels if isinstance(labels, pa.Array) else _column(labels, pa.int16())


def _column(values: NDArray[Any], kind: Any) -> Any:
    """An Arrow array over the values' memory; `pa.array` would import pandas (a second) to look at them."""
    values = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def write_predictions(
    path: Path, engine: Engine, split: Split, classes: int, batch_size: int
) -> int:
    """Score a split into one Parquet file, which stands whole or not at all.

    Returns:
        How many rows were written.

    Raises:
        ContractError: what comes out of the engine is no logits, or not finite.
    """
    schema = schemas.predictions(classes)
    with atomic_write(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for rows in batches(len(split), batch_size):
            logits = check_logits(engine.logits(split.images[rows]), classes, first_row=rows.start)
            table = probability_table(logits, split.labels[rows], first_row=rows.start)
            writer.write_table(schemas.validate(table, schema))
    return len(split)
