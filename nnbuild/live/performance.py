"""Compute live accuracy and its estimate by period and run, with DuckDB over the scored rows."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.errors import InputError, StoreError
from nnbuild.evaluation.metrics import BINS
from nnbuild.evaluation.significance import wilson_interval
from nnbuild.evaluation.slices import MAX_VALUES
from nnbuild.live.jobs import (
    ID_COLUMNS,
    LabelledRows,
    Rows,
    ScoredInput,
    labelled_rows,
    scored_inputs,
)
from nnbuild.store import Store, schemas
from nnbuild.store.filesystem import is_remote, make_durable_dir, write_bytes
from nnbuild.store.query_views import PART, quoted

Period = Literal["day", "week"]
_ROUNDING = 1e-6  # error of confidence from stored float32 probabilities
_SMALLEST = 1.4e-45  # smallest positive float32, for probabilities that were rounded to 0


class Arrivals(NamedTuple):
    """Labelled examples of a run, in the order in which their labels arrived.

    An example counts once, in the first job that scored it: a copy is no new evidence. Jobs with a
    filter are left out, since it may have looked at the predictions.

    Attributes:
        days: Day on which the labels of each step arrived.
        labelled: Number of labelled examples of each step.
        correct: Number of them that were classified correctly.
    """

    days: list[date]
    labelled: list[int]
    correct: list[int]


@dataclass(frozen=True)
class Performance:
    """Live accuracy of all runs.

    Attributes:
        rows: Rows of the table `live`, with `run_id`, by run and period.
        arrivals: Labelled examples of each run, by arrival and then by day of the images.
    """

    rows: list[dict[str, Any]]
    arrivals: dict[str, Arrivals]


class _Model(NamedTuple):
    """Values of a run that its calibrated confidence and its accuracy are computed with."""

    dataset: str | None
    temperature: float
    threshold: float | None
    classes: int


def measure(store: Store, by: Period = "day", *, now: datetime | None = None) -> Performance:
    """Compute the live accuracy of every run whose model has scored, and its estimate.

    Args:
        store: Store of the runs, the scoring jobs and the labels.
        by: Length of a period: `day`, or `week` from Monday.
        now: Time of the computation, with a time zone; the current time by default.
    """
    with _counted(store, None) as (labelled_by, models, jobs):
        if not models:
            return Performance([], {})
        by_bin = labelled_by.connection.execute(_BY_BIN.format(period=by)).fetchall()
        queries = list(_arrival_queries(labelled_by, jobs))
        arrived = labelled_by.connection.execute(_union(queries)).fetchall() if queries else []
    rows = [row for _, row in _rows(by_bin, models, by, now or datetime.now(UTC))]
    arrivals = {}
    for run_id, steps in groupby(arrived, key=lambda each: each[0]):
        days, labelled, correct = zip(*((step[1], step[3], step[4]) for step in steps), strict=True)
        arrivals[run_id] = Arrivals(list(days), list(labelled), list(correct))
    return Performance(rows, arrivals)


def measure_slices(
    store: Store, column: str, by: Period = "day", *, now: datetime | None = None
) -> list[dict[str, Any]]:
    """Compute the live accuracy of every run for each value of a column that jobs have kept.

    Args:
        store: Store of the runs, the scoring jobs and the labels.
        column: Name of the column; it has no value in the rows of jobs that did not keep it.
        by: Length of a period: `day`, or `week` from Monday.
        now: Time of the computation, with a time zone; the current time by default.

    Returns:
        Rows of the table `live_slices`, with `run_id`, by run, period and value.

    Raises:
        InputError: No job has kept the column, or it has more than `MAX_VALUES` values.
    """
    with _counted(store, column) as (labelled, models, _):
        if models:
            _require_few_values(labelled.connection, column)
        query = _BY_BIN.format(period=by)
        by_bin = labelled.connection.execute(query).fetchall() if models else []
    if not by_bin:
        raise InputError(
            f"no scoring job has kept the column {column!r}; score with it in keep",
            setting="column",
            value=column,
        )
    names = schemas.LIVE_SLICES.names
    return [
        {"run_id": row["run_id"]}
        | {name: row[name] for name in names if name in row}
        | {"column_name": column, "value": value}
        for value, row in _rows(by_bin, models, by, now or datetime.now(UTC))
    ]


def _require_few_values(connection: Any, column: str) -> None:
    """Refuse a column, such as a serial number, whose values are not slices."""
    (count,) = connection.execute("select count(distinct value) from counts").fetchone()
    if count > MAX_VALUES:
        raise InputError(
            f"the column {column!r} has {count:,} values in the scoring jobs, expected at most "
            f"{MAX_VALUES}; group them in a column of their own",
            setting="column",
            value=column,
        )


@contextmanager
def _counted(
    store: Store, column: str | None
) -> Iterator[tuple[LabelledRows, dict[str, _Model], list[ScoredInput]]]:
    """Yield the rows, with the table `counts`, the models, and their jobs; no model if no job."""
    jobs = scored_inputs(store)
    models = _models(store, jobs)
    known = [each for each in jobs if each.run_id in models]
    with labelled_rows(store, jobs) as labelled:
        queries = _counts(labelled, known, models, column)
        if queries:
            labelled.connection.execute(f"create table counts as {' union all '.join(queries)}")
        yield labelled, models if queries else {}, known


def _models(store: Store, jobs: Iterable[ScoredInput]) -> dict[str, _Model]:
    """Return the models of the jobs, by run; model files and deleted runs are left out."""
    models = {}
    for run_id in dict.fromkeys(each.run_id for each in jobs):
        if run_id is None:
            continue
        try:
            manifest = store.manifest(run_id)
        except StoreError:
            continue
        fitted = manifest.steps.calibrate_model
        models[run_id] = _Model(
            manifest.row.dataset,
            fitted.temperature if fitted else 1.0,
            fitted.confidence_threshold if fitted else None,
            manifest.steps.load_data.classes,
        )
    return models


def _counts(
    labelled: LabelledRows,
    jobs: Iterable[ScoredInput],
    models: dict[str, _Model],
    sliced: str | None,
) -> list[str]:
    """Return a query for the jobs of each kind: counts and sums by job and confidence bin.

    There is none if a column is to be sliced by, and no job has kept it. The temperature, the
    threshold and the number of classes are constants of a query, which is several times faster than
    reading them from a table for each row.
    """

    def kind(job: ScoredInput) -> tuple[str, str, float]:
        return str(job.run_id), job.identifier, job.temperature

    queries, is_known = [], sliced is None
    for (run_id, identifier, temperature), group in groupby(sorted(jobs, key=kind), key=kind):
        model = models[run_id]
        columns, alike = ["predicted", "log_prob", *_probabilities(model)], list(group)
        rows, value = None, "null"
        if sliced is not None:
            own = [] if sliced in (ID_COLUMNS[identifier], *columns) else [sliced]
            rows = labelled.rows("scores", alike, identifier, [*columns, *own])
            value = "null" if rows is None else f"s.{quoted(sliced)}"
            is_known |= rows is not None
        rows = rows or labelled.rows("scores", alike, identifier, columns)
        if rows is not None:
            exponent = model_exponent(temperature, model.temperature)
            queries.append(_count_query(rows, model, exponent, value))
    return queries if is_known else []


def _arrival_queries(labelled: LabelledRows, jobs: Iterable[ScoredInput]) -> Iterator[str]:
    """Yield a query for each run and kind of identifier: its examples by arrival and day."""

    def kind(job: ScoredInput) -> tuple[str, str]:
        return str(job.run_id), job.identifier

    complete = sorted((each for each in jobs if each.complete), key=kind)
    for (run_id, identifier), group in groupby(complete, key=kind):
        rows = labelled.rows("scores", group, identifier, ["predicted"])
        if rows is None:
            continue
        yield (
            f"select '{run_id}' as run_id, arrived, day, count(*)::bigint, "
            "count(*) filter (predicted = truth)::bigint "
            f"from (select j.day, s.predicted, {rows.labels} "
            f"from {rows.source} where truth is not null "
            f"qualify row_number() over (partition by {rows.example} "
            f"order by s.{PART}, s.predicted) = 1) group by arrived, day"
        )


def _union(queries: Sequence[str]) -> str:
    """Return a query for the sums of the rows of some queries by their first three columns."""
    return (
        "select #1, #2, #3, sum(#4)::bigint, sum(#5)::bigint from ("
        f"{' union all '.join(queries)}) group by all order by all"
    )


def model_exponent(job_temperature: float, run_temperature: float) -> float:
    """Return the power of the stored probabilities that is proportional to the calibrated ones.

    softmax(z / T) is proportional to softmax(z / t) to the power of t / T.
    """
    return job_temperature / run_temperature


def _probabilities(model: _Model) -> list[str]:
    return [f"prob_{label}" for label in range(model.classes)]


def _count_query(rows: Rows, model: _Model, exponent: float, value: str) -> str:
    names = _probabilities(model)
    powers = [f"pow(s.{name}, {exponent!r})" for name in names]
    total = "1.0::double" if exponent == 1.0 else " + ".join(powers)
    truth = " ".join(f"when {label} then {name}" for label, name in enumerate(names))
    above = "null" if model.threshold is None else f"calibrated >= {model.threshold - _ROUNDING!r}"
    loss = (
        f"case when truth is not null then ln(total) - {exponent!r} * "
        f"ln(greatest((case truth {truth} end)::double, {_SMALLEST})) end"
    )
    probabilities = ", ".join(f"s.{name}" for name in names)
    return (
        f"select part, value, least(ceil(calibrated * {BINS}), {BINS})::integer as bin, "
        "count(*) as n, sum(calibrated) as confidence, "
        f"count(*) filter ({above}) as above, {model.threshold is not None} as has_threshold, "
        "count(truth) as labelled, count(*) filter (truth = predicted) as correct, "
        f"sum(calibrated) filter (truth is not null) as confidence_labelled, sum({loss}) as loss "
        f"from (select *, exp({exponent!r} * log_prob) / total as calibrated from ("
        f"select s.{PART} as part, {value}::varchar as value, s.predicted, s.log_prob, "
        f"{probabilities}, {total} as total, {rows.labels} from {rows.source})) group by all"
    )


_BY_BIN = """
select j.run_id, date_trunc('{period}', j.day)::date as start, c.value, c.bin, sum(c.n)::bigint,
  sum(c.confidence), sum(c.above)::bigint, bool_and(c.has_threshold), sum(c.labelled)::bigint,
  sum(c.correct)::bigint, coalesce(sum(c.confidence_labelled), 0), coalesce(sum(c.loss), 0)
from counts c join jobs j on j.job = c.part
group by all order by all
"""


def _rows(
    by_bin: Sequence[tuple[Any, ...]], models: dict[str, _Model], by: Period, now: datetime
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield the rows of the table, each with the value of its slice, from the confidence bins."""
    for (run_id, start, value), group in groupby(by_bin, key=lambda each: each[:3]):
        bins = list(group)
        columns = [np.array(values) for values in zip(*(each[4:] for each in bins), strict=True)]
        rows, confidence, above, has_threshold, labelled, correct, confident, loss = columns
        count, known = int(rows.sum()), int(labelled.sum())
        estimate = float(confidence.sum() / count)
        accuracy = int(correct.sum()) / known if known else None
        low, high = wilson_interval(accuracy, known) if accuracy is not None else (None, None)
        row = {
            "run_id": run_id,
            "period": by,
            "start": start,
            "dataset": models[run_id].dataset,
            "rows": count,
            "labelled": known,
            "accuracy": accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "expected_calibration_error": (
                float(np.abs(confident - correct).sum() / known) if known else None
            ),
            "negative_log_likelihood": max(0.0, float(loss.sum() / known)) if known else None,
            "estimated_accuracy": estimate,
            "estimated_accuracy_atc": (
                int(above.sum()) / count if bool(has_threshold.all()) else None
            ),
            "realised_minus_estimated": None if accuracy is None else accuracy - estimate,
            "computed_at": now,
        }
        yield value, row


def write(store: Store, performance: Performance, by: Period) -> None:
    """Replace the rows of the periods of one length in the table `live`.

    Args:
        store: Store of the runs.
        performance: Result of `measure`.
        by: Length of its periods.
    """
    replace_rows(store, "live", performance.rows, f"part-{by}.parquet")


def write_slices(store: Store, rows: Sequence[dict[str, Any]], column: str, by: Period) -> None:
    """Replace the rows of a column and of the periods of one length in the table `live_slices`.

    Args:
        store: Store of the runs.
        rows: Result of `measure_slices`.
        column: Name of the column.
        by: Length of the periods.
    """
    digest = hashlib.sha256(column.encode()).hexdigest()[:16]
    replace_rows(store, "live_slices", rows, f"part-{by}-{digest}.parquet")


def replace_rows(store: Store, name: str, rows: Sequence[dict[str, Any]], file: str) -> None:
    """Replace a file of every run in a table.

    Args:
        store: Store of the runs.
        name: Name of the table.
        rows: Its rows with `run_id`, by run.
        file: Name of the file in the folder of each run.
    """
    folder = store.root / "tables" / name
    written = set()
    for run_id, group in groupby(rows, key=lambda row: row["run_id"]):
        values = [{name: row[name] for name in row if name != "run_id"} for row in group]
        table = schemas.table_of(schemas.STATIC_SCHEMAS[name], values)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        path = folder / f"run_id={run_id}" / file
        if not is_remote(path):
            make_durable_dir(path.parent)
        write_bytes(path, sink.getvalue().to_pybytes())
        written.add(run_id)
    for run_id in store.run_ids() if folder.is_dir() else ():
        path = folder / f"run_id={run_id}" / file
        if run_id not in written and path.exists():  # its scoring jobs were deleted
            path.unlink()
