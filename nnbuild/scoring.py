"""Batch scoring: images to logits to the probability table, a batch at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild import schemas
from nnbuild.data.dataset import Split
from nnbuild.engines import Engine, Logits
from nnbuild.logits import check_logits, log_softmax, softmax
from nnbuild.store.files import written


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
    logits: Logits, labels: NDArray[np.int16] | None, *, first_row: int = 0, temperature: float = 1.0
) -> Any:
    """Logits as rows of the `predictions` table.

    Args:
        logits: float32, shape (n, classes), finite.
        labels: int16, shape (n,), the true classes if they are known.
        first_row: the example_id of the first row.
        temperature: the logits are divided by it.

    Returns:
        An Arrow table with the schema `nnbuild.schemas.predictions(classes)`.
    """
    rows, classes = logits.shape
    predicted = logits.argmax(axis=1)
    probabilities = softmax(logits, temperature=temperature)
    log_probabilities = log_softmax(logits, temperature=temperature)
    each = np.arange(rows)
    columns = [
        pa.array(np.arange(first_row, first_row + rows, dtype=np.int64)),
        pa.nulls(rows, pa.int16()) if labels is None else pa.array(labels.astype(np.int16, copy=False)),
        pa.array(predicted.astype(np.int16)),
        pa.array(probabilities[each, predicted]),
        pa.array(log_probabilities[each, predicted]),
        *(pa.array(np.ascontiguousarray(probabilities[:, label])) for label in range(classes)),
    ]
    return pa.Table.from_arrays(columns, schema=schemas.predictions(classes))


def write_predictions(path: Path, engine: Engine, split: Split, classes: int, batch_size: int) -> int:
    """Score a split into one Parquet file, which stands whole or not at all.

    Returns:
        How many rows were written.

    Raises:
        ContractError: what comes out of the engine is no logits, or not finite.
    """
    schema = schemas.predictions(classes)
    with written(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for rows in batches(len(split), batch_size):
            logits = check_logits(engine.logits(split.images[rows]), classes, first_row=rows.start)
            table = probability_table(logits, split.labels[rows], first_row=rows.start)
            writer.write_table(schemas.conforming(table, schema))
    return len(split)
