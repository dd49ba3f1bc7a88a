"""The columns of the `scores` table: those of `predictions`, and what the user asked for beside them."""

from typing import Any

import numpy as np
import pyarrow as pa

from nnbuild.engines import Logits
from nnbuild.errors import ConfigError
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.kept_columns import require_distinct_names
from nnbuild.scoring.probabilities import probability_table
from nnbuild.scoring.rows import Rows
from nnbuild.store import schemas


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
    rows: Rows, logits: Logits, config: ScoreConfig, schema: Any, temperature: float
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
