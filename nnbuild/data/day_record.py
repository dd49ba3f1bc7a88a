"""The record of a dated source: the versions of its days, and the ranges that were searched for.

It is `datasets/<name>/days/<source>.json` in the store.
"""

import fcntl
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from nnbuild.store.filesystem import make_durable_dir, os_errors_as_store_errors, write_bytes
from nnbuild.store.json_models import Moment, read_model
from nnbuild.store.step_results import DayVersion
from nnbuild.store.store import Store

_RECORD_NAME = r"[0-9a-f]{16}\.json"


class RecordedDay(BaseModel):
    """The versions of a day.

    Attributes:
        fingerprint: Digest of the newest version's files at the source.
        versions: Its versions, the newest last.
    """

    model_config = ConfigDict(extra="forbid")
    fingerprint: str
    versions: list[DayVersion] = Field(min_length=1)


class Search(BaseModel):
    """A range of days that was searched for at a source; what it did not find was missing.

    Attributes:
        first: First day of the range; None for no limit.
        last: Last day.
        at: Time of the first search of this range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    first: date | None
    last: date
    at: Moment

    def covers(self, day: date) -> bool:
        """Return whether a day is in the range."""
        return day <= self.last and (self.first is None or self.first <= day)


class Record(BaseModel):
    """Everything that was ingested from a source.

    Attributes:
        pattern: Path or URL of the source, with its placeholder.
        class_names: Name of every class of any day.
        begun: Whether the first ingestion was complete, so that a class is new if no day has it.
        days: The days, by their date.
        searches: The ranges that were searched for, the oldest first.
    """

    model_config = ConfigDict(extra="forbid")
    pattern: str
    class_names: tuple[str, ...] = ()
    begun: bool = False
    days: dict[date, RecordedDay] = {}
    searches: list[Search] = []

    def versions(self) -> Iterator[DayVersion]:
        """Yield every version of every day."""
        for day in self.days.values():
            yield from day.versions

    def newest(self, first: date | None, last: date) -> list[DayVersion]:
        """Return the newest version of each day of a range, in the order of the days.

        Args:
            first: First day; None for no limit.
            last: Last day.
        """
        return [
            self.days[day].versions[-1]
            for day in sorted(self.days)
            if day <= last and (first is None or first <= day)
        ]

    def without_future_times(self, now: datetime) -> "Record":
        """Return the record with the present in place of times that have not come yet.

        They are those of a clock that was ahead. Until they come, their versions and all later ones
        would seem not to be ingested yet.
        """
        days = {
            day: each.model_copy(
                update={
                    "versions": [
                        version.model_copy(
                            update={"ingested_at": _no_later(version.ingested_at, now)}
                        )
                        for version in each.versions
                    ]
                }
            )
            for day, each in self.days.items()
        }
        searches = [
            each.model_copy(update={"at": _no_later(each.at, now)}) for each in self.searches
        ]
        return self.model_copy(update={"days": days, "searches": searches})

    def known_at(
        self, moment: datetime, first: date | None, last: date
    ) -> tuple[list[DayVersion], int]:
        """Return for each day of a range the newest version that was ingested before a moment.

        A day that had not been ingested by then was late, and is left out, if it had been searched
        for. If it had not, its state at that moment is unknown, and its newest version counts.

        Args:
            moment: Aware time.
            first: First day; None for no limit.
            last: Last day.

        Returns:
            The versions, in the order of the days, and the number of days whose state at that
            moment is unknown.
        """
        before = {
            day: [
                each
                for each in record.versions
                if datetime.fromisoformat(each.ingested_at) < moment
            ]
            for day, record in self.days.items()
        }
        searches = [each for each in self.searches if datetime.fromisoformat(each.at) < moment]
        known, newest = [], 0
        for version in self.newest(first, last):
            if before[version.day]:
                known.append(before[version.day][-1])
            elif not any(each.covers(version.day) for each in searches):
                known.append(version)
                newest += 1
        return known, newest


def utc_text(moment: datetime) -> str:
    """Return a time as the record holds it: ISO 8601 in UTC."""
    return moment.astimezone(UTC).isoformat()


def _no_later(moment: str, now: datetime) -> str:
    return utc_text(now) if datetime.fromisoformat(moment) > now else moment


@contextmanager
def lock(store: Store, folder: str) -> Iterator[None]:
    """Let only one process of this machine at a time change the days of a dataset."""
    make_durable_dir(store.local_root / folder)
    path = store.local_root / folder / ".lock"
    with os_errors_as_store_errors(f"lock {path}"):
        file = path.open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def current_parts(store: Store, name: str) -> set[str]:
    """Return the paths of the newest version of every ingested day of a dataset.

    Args:
        store: Store with the days.
        name: Name of the dataset.
    """
    records = (read_record(path) for path in _record_paths(store, name))
    return {day.versions[-1].part for record in records for day in record.days.values()}


def forget_parts(store: Store, name: str, parts: Collection[str]) -> None:
    """Remove versions of days from all records of a dataset, before their images are deleted.

    If a run asks for such a day later, it is ingested from its source again.

    Args:
        store: Store with the days.
        name: Name of the dataset.
        parts: Paths of the versions, see `DayVersion.part`.
    """
    with lock(store, f"datasets/{name}/days"):
        for path in _record_paths(store, name):
            record = read_record(path)
            days = {
                date: day.model_copy(update={"versions": versions})
                for date, day in record.days.items()
                if (versions := [each for each in day.versions if each.part not in parts])
            }
            if days != record.days:
                write_record(path, record.model_copy(update={"days": days}))


def _record_paths(store: Store, name: str) -> list[Path]:
    folder = store.dataset_folder(name, "days")
    with os_errors_as_store_errors(f"list {folder}"):
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if re.fullmatch(_RECORD_NAME, path.name))


def write_record(path: Path, record: Record) -> None:
    """Write the record of a source atomically."""
    write_bytes(path, record.model_dump_json().encode() + b"\n")


def read_record(path: Path) -> Record:
    """Read the record of a source.

    Raises:
        StoreError: It is missing or damaged.
    """
    return read_model(path, Record, "a record of ingested days")
