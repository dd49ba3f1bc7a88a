"""Score the rows of a batch: their logits, the table that is written, and the counts for drift."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nnbuild.data.streams import PICTURE_COLUMNS, Batch, ImageStream, RejectedRows
from nnbuild.engines import Engine, Logits, Pixels
from nnbuild.errors import ContractError, DataError
from nnbuild.evaluation.drift import Summary, summarise
from nnbuild.logits import check_logits, energy
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.shadow import by_model
from nnbuild.scoring.table import score_table

_LARGE_BATCH, _SAMPLE_STEP = 1024, 8  # drift is measured on every 8th image of a large batch
_NUMBER = "nnbuild: row"  # hardly the name of a column that a user carries through


class ScoredRows(NamedTuple):
    """Scored rows that are ready to be written.

    Attributes:
        tables: The rows that passed the filter, in one table for each batch.
        rows: Number of scored rows.
        summary: Counts of the scored rows for the drift check; None for no rows.
        shadow: The same rows as scored by the shadow; empty if the job has none.
    """

    tables: list[pa.Table]
    rows: int
    summary: Summary | None
    shadow: Sequence[pa.Table] = ()


class ShadowContext(NamedTuple):
    """What the rows of the shadow need in addition to the context of the job.

    Attributes:
        run_id: ID of the run that made the shadow.
        schema: Schema of its rows.
        temperature: Divisor of its logits.
        set_threshold: Smallest probability of the classes in its prediction sets; None if the job
            writes no sets.
    """

    run_id: str
    schema: pa.Schema
    temperature: float
    set_threshold: float | None = None


class ShardContext(NamedTuple):
    """Context for making the shards of a job.

    Attributes:
        config: Settings of the job.
        source: The open input.
        engine: Function that returns the engine; called only if there are rows to score.
        classes: Number of classes of the model.
        schema: Schema of the rows.
        temperature: Divisor of the logits.
        where: Filter of the rows to write; None to write all.
        class_names: Names of the classes; empty for a model file.
        energy_edges: Edges of the bins in which energies are counted; None to count none.
        set_threshold: Smallest probability of the classes in a prediction set; None if the job
            writes no sets.
        shadow: The same for the shadow, whose logits the engine returns too; None without one.
    """

    config: ScoreConfig
    source: ImageStream
    engine: Callable[[], Engine]
    classes: int
    schema: pa.Schema
    temperature: float
    where: pc.Expression | None
    class_names: tuple[str, ...] = ()
    energy_edges: NDArray[np.float64] | None = None
    set_threshold: float | None = None
    shadow: ShadowContext | None = None


def infer(engine: Engine, context: ShardContext, batch: Batch) -> tuple[Batch, list[Logits]]:
    """Compute the logits of a batch, and keep only the images that the drift check needs.

    Returns:
        The batch, and its logits by the model and, if the job has one, by the shadow.

    Raises:
        ContractError: The output of a model is not a finite array of logits.
    """
    images, ids = batch.images, batch.example_ids if batch.keys is None else batch.keys
    checked = []
    for logits in by_model(engine.logits(images), len(images)):
        try:
            checked.append(check_logits(logits, context.classes, example_ids=ids))
        except ContractError as error:
            if not checked or context.shadow is None:
                raise
            raise ContractError(
                f"shadow {context.shadow.run_id}: {error}; score without it"
            ) from error
    return batch._replace(images=_drift_sample(images)), checked


def scored_rows(context: ShardContext, batch: Batch, by_models: Sequence[Logits]) -> ScoredRows:
    """Return the rows of a batch as they are written.

    Args:
        context: Settings, schema, temperature and filter of the job.
        batch: Rows, with the sample of their images for the drift check.
        by_models: Logits of all rows, float32, shape (n, classes): by the model and, if the job
            has one, by the shadow.
    """
    logits = by_models[0]
    table = score_table(
        batch,
        logits,
        context.config,
        context.schema,
        context.temperature,
        class_names=context.class_names,
        set_threshold=context.set_threshold,
    )
    summary = counted(batch, table, logits, context.energy_edges)
    shadow = [_shadow_rows(context, batch, each, table["predicted"]) for each in by_models[1:]]
    if context.where is None:
        return ScoredRows([table], len(table), summary, shadow)
    numbered = table.append_column(_NUMBER, pa.array(np.arange(len(table))))
    selected = numbered.filter(context.where)
    shadow = [each.take(selected[_NUMBER]) for each in shadow]
    return ScoredRows([selected.drop_columns(_NUMBER)], len(table), summary, shadow)


def _shadow_rows(
    context: ShardContext, batch: Batch, logits: Logits, predicted: pa.ChunkedArray
) -> pa.Table:
    """Return the rows of a batch as scored by the shadow, with the classes of the model."""
    shadow = context.shadow
    if shadow is None:
        raise TypeError("the engine returns logits of a shadow, but the context has none")
    identifying = [each for each in PICTURE_COLUMNS.names if each in shadow.schema.names]
    table = score_table(
        batch._replace(kept=None if batch.kept is None else batch.kept.select(identifying)),
        logits,
        context.config,
        shadow.schema.remove(len(shadow.schema) - 1),
        shadow.temperature,
        class_names=context.class_names,
        set_threshold=shadow.set_threshold,
    )
    return table.append_column(shadow.schema.field(len(table.schema)), predicted)


def _drift_sample(images: Pixels) -> Pixels:
    """Copy the images of a batch that the drift check needs, so that the others are freed."""
    return images[:: _sample_step(len(images))].copy()


def counted(
    batch: Batch, table: pa.Table, logits: Logits, energy_edges: NDArray[np.float64] | None
) -> Summary:
    """Return the counts of scored rows for the drift check, whether or not they are written."""
    energies = None if energy_edges is None else energy(logits[:: _sample_step(len(logits))])
    return summarise(
        batch.images,
        table["predicted"].to_numpy(),
        table["confidence"].to_numpy(),
        logits.shape[1],
        energies=energies,
        edges=energy_edges,
    )


def _sample_step(rows: int) -> int:
    return _SAMPLE_STEP if rows >= _LARGE_BATCH else 1


def require_quarantine(reject: RejectedRows, config: ScoreConfig) -> RejectedRows:
    """Return rows that cannot be scored, if the job puts them into quarantine.

    Raises:
        DataError: `on_error` is `stop`.
    """
    if config.on_error == "stop":
        raise DataError(
            f"{reject.file}, row group {reject.row_group}, row {reject.row}: {reject.reason}; "
            "fix the input, or set on_error to quarantine",
            setting="on_error",
        )
    return reject
