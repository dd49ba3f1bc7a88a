"""Compare shadows with the models that scored the same rows, on the labels of production.

An example counts once for each pair of runs, in the first job in which both scored it, with the
label that counts now. Jobs with a filter are left out: the filter may have looked at the
predictions of one of the two.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Any

from nnbuild.errors import StoreError
from nnbuild.evaluation.sequential import win_evidence
from nnbuild.evaluation.significance import mcnemar_test_of_counts
from nnbuild.live.jobs import LabelledRows, ScoredInput, labelled_rows, scored_inputs
from nnbuild.live.performance import Period, replace_rows
from nnbuild.store import Store
from nnbuild.store.query_views import PART

TABLE = "live_shadows"


@dataclass(frozen=True)
class PairedCounts:
    """Labelled examples that a champion and a challenger have scored.

    Attributes:
        labelled: Number of examples.
        champion: Number of them that the champion classifies correctly.
        only_champion: Number of them that only the champion classifies correctly.
        only_challenger: Number of them that only the challenger classifies correctly.
    """

    labelled: int = 0
    champion: int = 0
    only_champion: int = 0
    only_challenger: int = 0

    def __add__(self, other: "PairedCounts") -> "PairedCounts":
        mine, theirs = asdict(self), asdict(other)
        return PairedCounts(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def evidence(self) -> float:
        """Return the evidence that the challenger is better, an e-value."""
        return win_evidence(self.only_challenger, self.only_champion)


Pair = tuple[str, str]
"""ID of the run whose model scored, and ID of its shadow."""


def paired_counts(
    store: Store, *, only: Pair | None = None
) -> dict[Pair, dict[date, PairedCounts]]:
    """Return the counts of each pair of runs by day; pairs and days without labels are left out.

    Args:
        store: Store of the runs, the scoring jobs and the labels.
        only: A pair of runs to compare; all of them if not given.
    """
    jobs = scored_inputs(store)
    compared = [
        each
        for each in jobs
        if each.shadow_run_id is not None
        and each.complete
        and only in (None, (each.run_id, each.shadow_run_id))
    ]
    if not compared:
        return {}
    with labelled_rows(store, jobs) as labelled:
        queries = list(_pair_queries(labelled, compared))
        if not queries:
            return {}
        query = " union all ".join(queries) + " order by all"
        found = labelled.connection.execute(query).fetchall()
    counts: dict[Pair, dict[date, PairedCounts]] = {}
    for champion_id, shadow_id, day, *values in found:
        days = counts.setdefault((champion_id, shadow_id), {})
        days[day] = days.get(day, PairedCounts()) + PairedCounts(*values)
    return counts


def _pair_queries(labelled: LabelledRows, jobs: Iterable[ScoredInput]) -> Iterator[str]:
    """Yield a query for each pair and kind of identifier: its counts by day of the images."""

    def kind(job: ScoredInput) -> tuple[str, str, str]:
        return str(job.run_id), str(job.shadow_run_id), job.identifier

    columns = ["predicted", "champion_predicted"]
    for (run_id, shadow_id, identifier), group in groupby(sorted(jobs, key=kind), key=kind):
        rows = labelled.rows("shadow_scores", group, identifier, columns)
        if rows is None:
            continue
        yield (
            f"select '{run_id}', '{shadow_id}', day, count(*)::bigint, "
            "count(*) filter (champion_predicted = truth)::bigint, "
            "count(*) filter (champion_predicted = truth and predicted <> truth)::bigint, "
            "count(*) filter (champion_predicted <> truth and predicted = truth)::bigint "
            f"from (select j.origin, j.day, s.*, {rows.labels} "
            f"from {rows.source} where truth is not null "
            f"qualify row_number() over (partition by {rows.example} "
            f"order by s.{PART}, s.predicted, s.champion_predicted) = 1) group by day"
        )


def measure_shadows(
    store: Store,
    counts: Mapping[Pair, Mapping[date, PairedCounts]],
    by: Period = "day",
    *,
    now: datetime | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of the table `live_shadows`, by pair: each period, then the whole time.

    Args:
        store: Store of the runs.
        counts: Result of `paired_counts`.
        by: Length of a period: `day`, or `week` from Monday.
        now: Time of the computation, with a time zone; the current time by default.
    """
    now, rows = now or datetime.now(UTC), []
    for (run_id, shadow_id), days in sorted(counts.items()):
        try:
            dataset = store.manifest(run_id).row.dataset
        except StoreError:  # it was deleted
            continue
        periods: dict[date, PairedCounts] = {}
        for day in sorted(days):
            start = day - timedelta(days=day.weekday()) if by == "week" else day
            periods[start] = periods.get(start, PairedCounts()) + days[day]
        spans: list[tuple[str, date, PairedCounts]] = [
            (by, start, found) for start, found in periods.items()
        ]
        spans.append(("all", min(days), sum(days.values(), PairedCounts())))
        for period, start, found in spans:
            about = {"run_id": run_id, "period": period, "start": start, "dataset": dataset}
            rows.append(about | {"shadow_run_id": shadow_id} | _metrics(found, now))
    return rows


def _metrics(counts: PairedCounts, now: datetime) -> dict[str, Any]:
    test = mcnemar_test_of_counts(counts.labelled, counts.only_champion, counts.only_challenger)
    accuracy = counts.champion / counts.labelled
    tested = test._asdict()
    del tested["examples"]
    return {
        "labelled": counts.labelled,
        "accuracy": accuracy,
        "shadow_accuracy": accuracy + test.difference,
        **tested,
        "evidence": counts.evidence,
        "computed_at": now,
    }


def write_shadows(store: Store, rows: Sequence[dict[str, Any]], by: Period) -> None:
    """Replace the rows of the periods of one length, and of the whole time, in `live_shadows`.

    Args:
        store: Store of the runs.
        rows: Result of `measure_shadows`.
        by: Length of its periods.
    """
    for period in (by, "all"):
        found = [row for row in rows if row["period"] == period]
        replace_rows(store, TABLE, found, f"part-{period}.parquet")
