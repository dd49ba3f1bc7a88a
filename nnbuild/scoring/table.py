"""Convert logits to rows of the probability table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.data.dataset import Split
from nnbuild.data.labels import has_names
from nnbuild.data.streams import Batch
from nnbuild.engines import Engine, Logits
from nnbuild.errors import ConfigError
from nnbuild.evaluation.conformal import prediction_sets
from nnbuild.logits import check_logits, energy, predict
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.selection import require_distinct_names
from nnbuild.store import schemas
from nnbuild.store.filesystem import atomic_write


def batches(examples: int, batch_size: int) -> Iterator[slice]:
    """Yield the slices that divide a number of examples into batches."""
    for start in range(0, examples, batch_size):
        yield slice(start, min(start + batch_size, examples))


def logits_of(engine: Engine, split: Split, classes: int, batch_size: int) -> Logits:
    """Compute all logits of a split that fits in memory.

    Returns:
        float32, shape (n, classes).

    Raises:
        ContractError: The output of the engine is not a finite array of logits.
    """
    logits = np.empty((len(split), classes), np.float32)
    for rows in batches(len(split), batch_size):
        batch = engine.logits(split.images[rows])
        logits[rows] = check_logits(batch, classes, first_row=rows.start)
    return logits


def probability_table(
    logits: Logits,
    labels: NDArray[np.int16] | pa.Array | None,
    *,
    first_row: int = 0,
    temperature: float = 1.0,
    example_ids: NDArray[np.int64] | None = None,
    class_names: Sequence[str] = (),
) -> pa.Table:
    """Convert logits to rows of the `predictions` table.

    Args:
        logits: Finite logits, float32, shape (n, classes).
        labels: True classes, int16, shape (n,), or an Arrow array with nulls; None if unknown.
        first_row: Number of the first row, from which rows are numbered without `example_ids`.
        temperature: Divisor of the logits.
        example_ids: IDs of the rows, int64, shape (n,).
        class_names: Names of the classes, for the column `predicted_name`; without it if none of
            them is more than a number.

    Returns:
        A table with the schema `nnbuild.store.schemas.predictions(classes)`.
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
    named = has_names(class_names)
    if named:
        columns.append(pa.array(class_names, pa.string()).take(columns[2]))
    return pa.Table.from_arrays(columns, schema=schemas.predictions(classes, named=named))


def _labels(labels: NDArray[np.int16] | pa.Array | None, rows: int) -> pa.Array:
    if labels is None:
        return pa.nulls(rows, pa.int16())
    return labels if isinstance(labels, pa.Array) else _column(labels, pa.int16())


def _column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return an Arrow array over the memory of the values."""
    # `pa.array` would import pandas, which takes a second.
    values = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def write_predictions(
    path: Path,
    engine: Engine,
    split: Split,
    classes: int,
    batch_size: int,
    *,
    class_names: Sequence[str] = (),
) -> int:
    """Score a split into one Parquet file, which is written atomically.

    The arguments are those of `logits_of` and `probability_table`.

    Returns:
        Number of rows written.

    Raises:
        ContractError: The output of the engine is not a finite array of logits.
    """
    schema = predictions_schema(classes, class_names, split.kept)
    with atomic_write(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for rows in batches(len(split), batch_size):
            logits = check_logits(engine.logits(split.images[rows]), classes, first_row=rows.start)
            table = probability_table(
                logits, split.labels[rows], first_row=rows.start, class_names=class_names
            )
            if split.kept is not None:
                kept = split.kept.slice(rows.start, len(table)).columns
                table = pa.Table.from_arrays([*table.columns, *kept], schema=schema)
            writer.write_table(schemas.validate(table, schema))
    return len(split)


def predictions_schema(
    classes: int, class_names: Sequence[str], kept: pa.Table | None
) -> pa.Schema:
    """Return the schema of `predictions` of a run, with the columns that describe its images."""
    schema = schemas.predictions(classes, named=has_names(class_names))
    return pa.schema([*schema, *(kept.schema if kept is not None else ())], schema.metadata)


def score_schema(
    config: ScoreConfig,
    classes: int,
    kept: pa.Schema,
    *,
    class_names: Sequence[str] = (),
    keyed: bool = False,
) -> pa.Schema:
    """Return the schema of a job's rows.

    Args:
        config: Settings of the job.
        classes: Number of classes of the model.
        kept: Schema of the columns to copy.
        class_names: Names of the classes.
        keyed: Whether texts identify the rows.

    Raises:
        ConfigError: A column to copy has the name of another one, or `top_k` is too large.
    """
    if config.top_k is not None and config.top_k > classes:
        raise ConfigError(
            f"top_k is {config.top_k}, expected at most {classes}, one per class",
            setting="top_k",
            value=config.top_k,
        )
    fixed = schemas.predictions(classes, named=has_names(class_names))
    logits = [
        _field(f"logit_{label}", pa.float32(), f"Logit of class {label}")
        for label in range(classes)
    ]
    fields = [*fixed, *([schemas.EXAMPLE_KEY] if keyed else [])]
    fields += logits if config.logits else []
    for place in range(1, (config.top_k or 0) + 1):
        fields.append(_field(f"top_{place}", pa.int16(), f"Class with rank {place} by probability"))
        fields.append(_field(f"top_{place}_prob", pa.float32(), f"Probability of top_{place}"))
    if config.coverage is not None:
        about = f"the prediction set of coverage {config.coverage:g}"
        fields.append(_field("set_size", pa.int16(), f"Number of classes in {about}"))
        fields += [
            _field(f"in_set_{label}", pa.bool_(), f"Whether class {label} is in {about}")
            for label in range(classes)
        ]
    if config.energy:
        fields.append(_field("energy", pa.float32(), "-log(sum(exp(logits))), at temperature 1"))
    require_distinct_names(kept.names, [field.name for field in fields], config.output)
    return pa.schema([*fields, *kept], metadata=fixed.metadata)


def score_table(
    batch: Batch,
    logits: Logits,
    config: ScoreConfig,
    schema: pa.Schema,
    temperature: float,
    *,
    class_names: Sequence[str] = (),
    set_threshold: float | None = None,
) -> pa.Table:
    """Return the scored rows of a batch, with the schema of `score_schema`.

    Args:
        batch: Rows.
        logits: Their logits, float32, shape (n, classes).
        config: Settings of the job.
        schema: Schema of the rows.
        temperature: Divisor of the logits.
        class_names: Names of the classes.
        set_threshold: Smallest probability of the classes in a prediction set; None if the job
            writes no sets.
    """
    table = probability_table(
        logits,
        batch.labels,
        temperature=temperature,
        example_ids=batch.example_ids,
        class_names=class_names,
    )
    columns = list(table.columns)
    columns += [batch.keys] if batch.keys is not None else []
    if config.logits:
        columns += [pa.array(np.ascontiguousarray(column)) for column in logits.T]
    if config.top_k:
        probabilities = np.stack(_probabilities(table, logits.shape[1]), axis=1)
        order = np.argsort(-logits, axis=1, kind="stable")[:, : config.top_k]
        for place in range(config.top_k):
            columns.append(pa.array(order[:, place].astype(np.int16)))
            columns.append(pa.array(probabilities[np.arange(len(order)), order[:, place]]))
    if set_threshold is not None:
        sets = prediction_sets(np.stack(_probabilities(table, logits.shape[1])), set_threshold)
        columns.append(pa.array(sets.sum(axis=0, dtype=np.int16)))
        columns += [pa.array(each) for each in sets]
    if config.energy:
        columns.append(pa.array(energy(logits)))
    columns += batch.kept.columns if batch.kept is not None else []
    return pa.Table.from_arrays(columns, schema=schema)


def _probabilities(table: pa.Table, classes: int) -> list[NDArray[np.float32]]:
    return [table[f"prob_{label}"].to_numpy() for label in range(classes)]


def _field(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"description": description})
