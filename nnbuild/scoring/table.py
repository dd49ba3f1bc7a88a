"""Logits to the rows of the probability table, a batch at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.data.dataset import Split
from nnbuild.engines import Engine, Logits, Pixels
from nnbuild.errors import ConfigError
from nnbuild.logits import check_logits, predict
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.kept_columns import require_distinct_names
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


class InputChunk(NamedTuple):
    """A part of an input that is read alone, such as a row group.

    Attributes:
        file: number of the file.
        group: number of the row group in it.
        first: number of its first row in the whole input.
        rows: how many there are.
    """

    file: int
    group: int
    first: int
    rows: int


class Columns(NamedTuple):
    """Which columns of the input are wanted.

    Attributes:
        example_id: the one that identifies a row; the row's number if not given.
        keep: those that are carried through.
        all_or_nothing: Whether a row that cannot be scored stops the job.
        image: The images; the usual names are tried if not given.
        label: The labels; the same.
    """

    example_id: str | None = None
    keep: tuple[str, ...] = ()
    all_or_nothing: bool = False
    image: str | None = None
    label: str | None = None


class Batch(NamedTuple):
    """Some rows of an input.

    Attributes:
        images: uint8, shape (n, height, width, channels); behind the network, only those that are looked at for drift.
        example_ids: int64, shape (n,).
        labels: int16 Arrow array with nulls, if the input has labels.
        kept: an Arrow table of the columns that are carried through.
    """

    images: Pixels
    example_ids: NDArray[np.int64]
    labels: Any
    kept: Any


class RejectedRows(NamedTuple):
    """Rows that cannot be scored, and why.

    Attributes:
        file: path or URL.
        row_group: in the file.
        row: the first one's number in the file; -1 for all of the row group.
        rows: how many.
        reason: on one line.
        path: POSIX path of a picture below the folder that is scored; None for other inputs.
    """

    file: str
    row_group: int
    row: int
    rows: int
    reason: str
    path: str | None = None


def score_schema(config: ScoreConfig, classes: int, kept: Any) -> Any:
    """The schema of a job's rows.

    Args:
        config: of the job.
        classes: how many the model has.
        kept: the schema of the columns that are carried through.

    Raises:
        ConfigError: a column that is carried through has the name of another, or k exceeds the classes.
    """
    if config.top_k is not None and config.top_k > classes:
        raise ConfigError(f"--top-k {config.top_k} of {classes} classes; give at most {classes}")
    fixed = schemas.predictions(classes)
    more = [
        _field(f"logit_{label}", pa.float32(), f"Logit of class {label}")
        for label in range(classes)
    ]
    fields = [*fixed, *(more if config.logits else [])]
    for place in range(1, (config.top_k or 0) + 1):
        fields.append(
            _field(f"top_{place}", pa.int16(), f"The class in place {place} by probability")
        )
        fields.append(_field(f"top_{place}_prob", pa.float32(), "Its probability"))
    require_distinct_names(kept.names, [field.name for field in fields], config.output)
    return pa.schema([*fields, *kept], metadata=fixed.metadata)


def score_table(
    rows: Batch, logits: Logits, config: ScoreConfig, schema: Any, temperature: float
) -> Any:
    """Some rows of the job, with the schema of `score_schema`."""
    table = probability_table(
        logits, rows.labels, temperature=temperature, example_ids=rows.example_ids
    )
    columns = list(table.columns)
    if config.logits:
        columns += [pa.array(np.ascontiguousarray(column)) for column in logits.T]
    if config.top_k:
        order = np.argsort(-logits, axis=1, kind="stable")[:, : config.top_k]
        probabilities = np.stack(
            [table[f"prob_{label}"].to_numpy() for label in range(logits.shape[1])], axis=1
        )
        for place in range(config.top_k):
            columns.append(pa.array(order[:, place].astype(np.int16)))
            columns.append(pa.array(probabilities[np.arange(len(order)), order[:, place]]))
    columns += rows.kept.columns if rows.kept is not None else []
    return pa.Table.from_arrays(columns, schema=schema)


def _field(name: str, kind: Any, description: str) -> Any:
    return pa.field(name, kind, nullable=False, metadata={"description": description})
