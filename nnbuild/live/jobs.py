"""Scored rows for labels: what identifies them, which jobs share an input, the newest label."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import pyarrow as pa

from nnbuild.errors import StoreError
from nnbuild.store import Store
from nnbuild.store.query import connected
from nnbuild.store.query_views import PART, register_numbered

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
        shadow_run_id: Run that scored the same rows into `shadow_scores`; None without one.
        complete: Whether all scored rows were written, and not only those that passed a filter.
        input_digest: Digest of the files; null in jobs of earlier versions.
    """

    score_id: str
    run_id: str | None
    identifier: str
    origin: str
    day: date
    temperature: float
    shadow_run_id: str | None = None
    complete: bool = True
    input_digest: str | None = None


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
                row.get("shadow_run_id"),
                row["written"] == row["rows"],
                digest,
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
        "digest": pa.array([each.input_digest for each in jobs], pa.string()),
    }
    return pa.table(fixed | {name: pa.array(values) for name, values in columns.items()})


class LabelledRows:
    """Scored rows with their newest labels, for queries in DuckDB.

    Args:
        connection: Connection with the table `labels`; the table `jobs` is registered in it.
        store: Store of the jobs.
        jobs: All jobs, since labels of one input have the ID of the first job that scored it.

    Attributes:
        connection: The connection.
    """

    def __init__(self, connection: Any, store: Store, jobs: Sequence[ScoredInput]) -> None:
        self.connection, self._store = connection, store
        self._numbers = {each.score_id: number for number, each in enumerate(jobs)}
        self._views = 0
        self._class_names = class_names(store, [each.run_id for each in jobs])
        connection.register("jobs", jobs_table(jobs))
        place_labels(connection)
        connection.execute(_MEANINGS)
        connection.execute(_NEWEST_LABELS)
        meanings = connection.execute("select label, name from meanings order by meaning")
        self._meanings: list[tuple[int, str | None]] = meanings.fetchall()
        counts = "select origin is null, count(*) from newest group by 1"
        self._has_labels: dict[bool, int] = dict(connection.execute(counts).fetchall())

    def rows(
        self, table: str, jobs: Iterable[ScoredInput], identifier: str, columns: Sequence[str]
    ) -> "Rows | None":
        """Return the rows of some jobs; None if they have no rows, or none has a column.

        Args:
            table: Name of a table with rows of scoring jobs, such as `scores`.
            jobs: The jobs, of one run.
            identifier: What identifies their rows.
            columns: Columns of the table to read, besides the one that identifies a row.
        """
        column, view = ID_COLUMNS[identifier], f"rows_{self._views}"
        self._views += 1
        jobs, names = list(jobs), [column, *columns]
        numbers = {each.score_id: self._numbers[each.score_id] for each in jobs}
        found = register_numbered(
            self.connection, self._store, table, numbers, alias=view, columns=names
        )
        if found != names:
            return None
        of_input = identifier not in GLOBAL
        classes = self._classes_of(jobs[0].run_id)
        labels, joins = _label_columns(column, classes, self._has_labels, of_input=of_input)
        example = f'j.origin, s."{column}"' if of_input else f's."{column}"'
        return Rows(f"{view} s join jobs j on j.job = s.{PART} {joins}", labels, example)

    def _classes_of(self, run_id: str | None) -> str:
        """Return a list in SQL: the number of each meaning's class in a run; -1 for no class."""
        numbers = {name: label for label, name in enumerate(self._class_names[run_id])}
        classes = [
            label if name is None or not numbers else numbers.get(name, -1)
            for label, name in self._meanings
        ]
        return f"{classes}::smallint[]"


class Rows(NamedTuple):
    """Parts of a query over scored rows `s` of jobs `j`.

    Attributes:
        source: What follows `from`.
        labels: The columns `truth` and `arrived`: the newest label, and the day on which the first
            one was ingested; null without a label.
        example: Columns that identify the example, over all jobs.
    """

    source: str
    labels: str
    example: str


@contextmanager
def labelled_rows(store: Store, jobs: Sequence[ScoredInput]) -> Iterator[LabelledRows]:
    """Connect DuckDB to the labels and the scored rows of a store; see `LabelledRows`."""
    with connected(store, ["labels"]) as connection:
        yield LabelledRows(connection, store, jobs)


def place_labels(connection: Any) -> None:
    """Create the view `placed`: the labels, each with the job that its ID belongs to now.

    That is the first job with the input (`owner`, and its number `origin`), also if the job by
    which the label was found has been deleted. Both are null if the ID is the same in all jobs.

    Args:
        connection: DuckDB connection with `labels` and, by `jobs_table`, `jobs`.
    """
    known = {row[0] for row in connection.execute("describe labels").fetchall()}
    added = (f"{name if name in known else 'null::varchar'} as {name}" for name in _ADDED_COLUMNS)
    connection.execute(_PLACED.format(added=", ".join(added)))


_ADDED_COLUMNS = ("input_digest", "label_name")  # which files of earlier versions do not have
_PLACED = """
create temp view placed as
select l.*, first.score_id as owner, first.origin
from (select * exclude (score_id), score_id as found_by from (
  select example_id, example_key, score_id, label, observed_at, ingested_at, version, {added}
  from labels)) l
left join jobs j on j.score_id = l.found_by
left join (select digest, min(origin) as origin from jobs group by digest) i
  on i.digest = l.input_digest
left join jobs first on first.job = coalesce(j.origin, i.origin)
"""
# Numbers from 1 for the different classes among the labels: the number and, if known, the name.
_MEANINGS = """
create table meanings as
select row_number() over (order by label, name)::integer as meaning, label, name
from (select distinct label, label_name as name from placed)
"""
# Creates the table `newest`: the label of each example that counts. Labels that belong to the input
# of one job have the number of that job's origin, others null.
_NEWEST_LABELS = """
create table newest as
select l.origin, l.example_id, l.example_key,
  arg_max(m.meaning, {'o': l.observed_at, 'v': l.version}) as meaning,
  max({'o': l.observed_at, 'v': l.version}) as moment,
  min(l.ingested_at)::date as arrived
from placed l join meanings m on m.label = l.label and m.name is not distinct from l.label_name
where l.found_by is null or l.origin is not null
group by all
"""


def _label_columns(
    column: str, classes: str, has_labels: dict[bool, int], *, of_input: bool
) -> tuple[str, str]:
    """Return the columns and the joins that give a scored row `s` of job `j` its newest label.

    Args:
        column: Column of the row that identifies it.
        classes: List in SQL with the class of each meaning.
        has_labels: Number of examples with labels for every job (True) and for one input (False).
        of_input: Whether the ID means the same example in jobs of one input only.
    """
    key = "example_id" if column == "example_id" else "example_key"
    by_input = (
        f'left join newest l on l.origin = j.origin and l."{key}" = s."{column}" '
        if has_labels.get(False)
        else ""
    )
    shared = (
        f'left join newest g on g.origin is null and g."{key}" = s."{column}" '
        if has_labels.get(True) and not of_input
        else ""
    )
    if by_input and shared:
        newer = "l.moment is null or g.moment > l.moment"
        columns = f"({classes})[case when {newer} then g.meaning else l.meaning end] as truth"
        return f"{columns}, least(l.arrived, g.arrived) as arrived", by_input + shared
    if by_input or shared:
        name = "l" if by_input else "g"
        return f"({classes})[{name}.meaning] as truth, {name}.arrived", by_input + shared
    return "null::smallint as truth, null::date as arrived", ""
