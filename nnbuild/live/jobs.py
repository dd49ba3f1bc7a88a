"""Describe scoring jobs for labels: what identifies their rows, and which jobs share an input."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa

from nnbuild.errors import StoreError
from nnbuild.store import Store

GLOBAL = ("integer", "text")
"""Identifiers that the user has chosen: an ID means the same example in every job."""
ID_COLUMNS = {
    "integer": "example_id",
    "row": "example_id",
    "text": "example_key",
    "path": "path",
}
"""Column of `scores` that identifies a row, by identifier."""


@dataclass(frozen=True)
class ScoredInput:
    """A committed scoring job with rows in the table `scores`.

    Attributes:
        score_id: ID of the job.
        run_id: Run whose model scored; None for a model file.
        identifier: What identifies a row: `row`, `path`, `integer` or `text`.
        origin: The first job that scored the same files. Row numbers and paths mean the same
            example in jobs of one origin only.
        day: Day of the images: as given, otherwise the day on which the job began, in UTC.
        temperature: Divisor of the logits.
    """

    score_id: str
    run_id: str | None
    identifier: str
    origin: str
    day: date
    temperature: float


def scored_inputs(store: Store) -> list[ScoredInput]:
    """Return the jobs whose rows are in the table `scores`, oldest first."""
    origins: dict[str, str] = {}
    jobs = []
    for row in store.read_table("score_jobs").to_pylist():
        if row["output"] is not None:
            continue
        score_id, digest = row["score_id"], row.get("input_digest")
        jobs.append(
            ScoredInput(
                score_id,
                row["run_id"],
                row.get("identifier") or "row",
                score_id if digest is None else origins.setdefault(digest, score_id),
                row.get("day") or row["started_at"].date(),
                row["temperature"],
            )
        )
    return jobs


def class_names(store: Store, run_ids: Sequence[str | None]) -> dict[str | None, tuple[str, ...]]:
    """Return the class names of each run; none for a model file, or a run that was deleted."""
    names: dict[str | None, tuple[str, ...]] = {}
    for run_id in dict.fromkeys(run_ids):
        try:
            names[run_id] = store.manifest(run_id).steps.load_data.class_names if run_id else ()
        except StoreError:
            names[run_id] = ()
    return names


def jobs_table(jobs: Sequence[ScoredInput], **columns: Sequence[Any]) -> pa.Table:
    """Return jobs as a table for DuckDB, with their number in `job` and additional columns.

    Args:
        jobs: The jobs; `origin` is the number of the first one with the same input.
        columns: Values for each job, by the name of the column.
    """
    numbers = {each.score_id: number for number, each in enumerate(jobs)}
    fixed = {
        "job": pa.array(range(len(jobs)), pa.int64()),
        "score_id": pa.array([each.score_id for each in jobs], pa.string()),
        "run_id": pa.array([each.run_id for each in jobs], pa.string()),
        "origin": pa.array([numbers[each.origin] for each in jobs], pa.int64()),
        "day": pa.array([each.day for each in jobs], pa.date32()),
    }
    return pa.table(fixed | {name: pa.array(values) for name, values in columns.items()})
