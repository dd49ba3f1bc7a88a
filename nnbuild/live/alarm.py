"""Raise an alarm when the accuracy of a champion has dropped, once for each drop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from nnbuild.config.sections import Section
from nnbuild.evaluation.sequential import drop_evidence, lower_bound
from nnbuild.live.performance import Arrivals, Performance, measure, write
from nnbuild.live.shadows import measure_shadows, paired_counts, write_shadows
from nnbuild.store import Store, champion, schemas
from nnbuild.store.filesystem import is_remote, make_durable_dir, write_bytes

_NEVER = datetime.min.replace(tzinfo=UTC)
_TABLE = "live_alarms"


class LiveConfig(Section):
    """Settings of the alarm."""

    margin: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="Largest drop of the accuracy, compared with the test images, that raises no "
        "alarm",
    )
    rate: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Largest probability that an alarm is ever raised although the accuracy has "
        "not dropped, however often it is computed",
    )


@dataclass(frozen=True)
class Alarm:
    """State of a champion's alarm.

    Attributes:
        run_id: ID of the champion.
        dropped: Whether the evidence is at least the threshold.
        since: Day since which the evidence has been at least the threshold; None if it is not.
        labelled: Number of labelled rows.
        accuracy: Accuracy on them.
        reference: Accuracy on the test images.
        floor: Accuracy below which there is a drop: a lower confidence bound of the reference,
            minus the margin.
        evidence: Evidence that the accuracy is below the floor, an e-value.
        threshold: Evidence at which the alarm is raised.
    """

    run_id: str
    dropped: bool
    since: date | None
    labelled: int
    accuracy: float
    reference: float
    floor: float
    evidence: float
    threshold: float


def floor_of(correct: int, examples: int, config: LiveConfig) -> float:
    """Return the accuracy below which there is a drop.

    Half of `config.rate` is used here, for the uncertainty of the reference; half for the evidence.

    Args:
        correct: Number of test images that the run classifies correctly.
        examples: Number of test images.
        config: Margin and rate.
    """
    floor = lower_bound(correct, examples, config.rate / 2) - config.margin
    return min(max(floor, 1e-6), 1 - 1e-6)


def threshold_of(config: LiveConfig) -> float:
    """Return the evidence at which the alarm is raised, for the other half of the rate."""
    return 2 / config.rate


def assess(
    reference: tuple[int, int], arrivals: Arrivals, config: LiveConfig, run_id: str = ""
) -> Alarm:
    """Return the state of an alarm from the labelled rows of a run, in the order of their arrival.

    Args:
        reference: Number of test images that the run classifies correctly, and number of test
            images.
        arrivals: Labelled rows; the evidence is computed after each day on which labels arrived.
        config: Margin and rate.
        run_id: ID of the run.
    """
    correct, examples = reference
    floor, threshold = floor_of(correct, examples, config), threshold_of(config)
    days = arrivals.days
    last = [number for number, (a, b) in enumerate(pairwise([*days, None])) if a != b]
    labelled, hits = np.array(arrivals.labelled), np.array(arrivals.correct)
    evidence = drop_evidence(labelled, hits, floor, np.array(last))
    below = np.flatnonzero(evidence < threshold)
    begun = int(below[-1]) + 1 if len(below) else 0
    dropped = begun < len(last)
    return Alarm(
        run_id=run_id,
        dropped=dropped,
        since=days[last[begun]] if dropped else None,
        labelled=int(labelled.sum()),
        accuracy=float(hits.sum() / labelled.sum()),
        reference=correct / examples,
        floor=floor,
        evidence=float(evidence[-1]),
        threshold=threshold,
    )


def alarms(store: Store, performance: Performance, config: LiveConfig) -> list[Alarm]:
    """Return the state of the alarm of each champion that has labelled rows."""
    found = []
    for run_id in (each.run_id for each in champion.currents(store).values()):
        if run_id is None or (arrivals := performance.arrivals.get(run_id)) is None:
            continue
        manifest = store.manifest(run_id)
        examples, accuracy = manifest.steps.load_data.test, manifest.row.test_accuracy or 0.0
        reference = round(accuracy * examples), examples
        found.append(assess(reference, arrivals, config, run_id))
    return found


def record(
    store: Store,
    found: Sequence[Alarm],
    *,
    now: datetime,
    on_raised: Callable[[Alarm], None] = lambda _: None,
) -> list[Alarm]:
    """Add the changes of alarms to the table `live_alarms`.

    Args:
        store: Store of the runs.
        found: Result of `alarms`.
        now: Time, with a time zone.
        on_raised: Callback for each alarm that is raised now, before it is recorded. If the process
            dies in between, the next call raises the alarm again, so none is lost.

    Returns:
        The alarms that are raised now, without those that were already raised before.
    """
    raised = []
    for alarm in found:
        events = _events(store, alarm.run_id)
        last, at = events[-1] if events else ("recovered", _NEVER)
        if alarm.dropped == (last == "dropped"):
            continue
        if alarm.dropped:
            on_raised(alarm)
            raised.append(alarm)
        # The newest event is the state, also if the clock was set back since the last one.
        _add(store, alarm, len(events), max(now, at + timedelta(microseconds=1)))
    return raised


def _events(store: Store, run_id: str) -> list[tuple[str, datetime]]:
    """Return the events of a run's alarm with their times, oldest first."""
    table = store.read_table(_TABLE, None, ["event", "at"]).to_pylist()
    rows = sorted((row for row in table if row["run_id"] == run_id), key=lambda row: row["at"])
    return [(row["event"], row["at"]) for row in rows]


def _add(store: Store, alarm: Alarm, number: int, now: datetime) -> None:
    names = ("labelled", "accuracy", "reference", "floor", "evidence", "threshold")
    row: dict[str, Any] = {name: getattr(alarm, name) for name in names}
    row |= {"event": "dropped" if alarm.dropped else "recovered", "at": now}
    sink = pa.BufferOutputStream()
    pq.write_table(schemas.table_of(schemas.LIVE_ALARMS, [row]), sink, compression="zstd")
    path = store.partition(_TABLE, alarm.run_id) / f"part-{number}.parquet"
    if not is_remote(path):
        make_durable_dir(path.parent)
    write_bytes(path, sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class Watched:
    """Result of a scheduled look at live accuracy.

    Attributes:
        rows: Rows of the table `live`, by run and day.
        shadows: Rows of the table `live_shadows`, by pair of runs and day.
        raised: Alarms that were raised now.
    """

    rows: list[dict[str, Any]]
    shadows: list[dict[str, Any]]
    raised: list[Alarm]


def watch(
    config: LiveConfig,
    root: Path | str | None = None,
    *,
    now: datetime,
    on_raised: Callable[[Alarm], None] = lambda _: None,
) -> Watched:
    """Compute live accuracy by day, also of shadows, and record the alarms of the champions.

    Args:
        config: Settings of the alarm.
        root: Root of the store.
        now: Time of the look, with a time zone.
        on_raised: Callback for each alarm that is raised now; see `record`.
    """
    store = Store.open(root)
    performance = measure(store, now=now)
    write(store, performance, "day")
    shadows = measure_shadows(store, paired_counts(store), now=now)
    write_shadows(store, shadows, "day")
    raised = record(store, alarms(store, performance, config), now=now, on_raised=on_raised)
    return Watched(performance.rows, shadows, raised)
