"""Ingestion of a dated source: each day is stored once, by content, and its time is recorded.

The record of a source lists its days, and for each day its versions: a day that is corrected gets
a new version, and the earlier ones are kept. It is `datasets/<name>/days/<source>.json`; the images
of a version are in `datasets/<name>/days/<day>/<digest>/`.
"""

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nnbuild.data import dataset_reader, dataset_writer
from nnbuild.data.dataset import Dataset
from nnbuild.data.days import SourceDay, absolute, dataset_name, days_at, read_day
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.data.pixels import Workspace
from nnbuild.errors import DataError
from nnbuild.runtime import fault_injection
from nnbuild.store.filesystem import (
    make_durable_dir,
    os_errors_as_store_errors,
    publish_dir,
    upload_folder,
    write_bytes,
)
from nnbuild.store.ids import is_temporary_name, temporary_name
from nnbuild.store.json_models import Moment, read_model
from nnbuild.store.step_results import MAX_UNREADABLE_EXAMPLES, DayVersion
from nnbuild.store.store import Store

_MAX_NAMED = 3
_RECORD_NAME = r"[0-9a-f]{16}\.json"


class _Day(BaseModel):
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
    days: dict[date, _Day] = {}
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


class DatedSource:
    """A dated source, and what a store has of it.

    Args:
        store: Store that the days are ingested into; it is created if it does not exist.
        pattern: Path or URL with `{date}`.
        options: Options for reading the files of a day.

    Attributes:
        name: Name of its datasets.
        pattern: Absolute path or URL with the placeholder.
    """

    def __init__(self, store: Store, pattern: str, options: ReadOptions = DEFAULT) -> None:
        self._store, self._options = store, options
        self.pattern, self.name = absolute(pattern), dataset_name(absolute(pattern))
        changed = {
            each.name: repr(getattr(options, each.name))
            for each in fields(options)
            if getattr(options, each.name) != getattr(DEFAULT, each.name)
        }
        # Other options can give other images, so they have a record of their own.
        key = hashlib.sha256(json.dumps([self.pattern, changed], sort_keys=True).encode())
        self._folder = f"datasets/{self.name}/days"
        self._file = f"{self._folder}/{key.hexdigest()[:16]}.json"

    def record(self) -> Record:
        """Return what was ingested so far.

        Raises:
            StoreError: The record is damaged.
        """
        path = self._store.root / self._file
        with os_errors_as_store_errors(f"look for {path}"):
            if not path.exists():
                return Record(pattern=self.pattern)
        return _read_record(path)

    def ingest(
        self,
        first: date | None,
        last: date,
        now: datetime,
        *,
        new_classes: bool = False,
        is_past: bool = False,
    ) -> tuple[Record, list[str]]:
        """Ingest the days of a range that are new at the source, or have changed.

        Nothing is ingested if the clock is behind the newest ingested day.

        Args:
            first: First day; None for no limit.
            last: Last day; today, unless `is_past`.
            now: Aware time to record.
            new_classes: Whether a day may have a class that no day before had.
            is_past: Whether a past range is ingested later: a day that is missing was not late
                then.

        Returns:
            The record, and a remark on the days that the source no longer has.

        Raises:
            DataError: A day cannot be read, or has a new class; the days before it are ingested.
            StoreError: The store cannot be written.
        """
        found = days_at(self.pattern, first, last, metadata=self._options.metadata)
        if not found and not self._store.exists():
            return Record(pattern=self.pattern), []
        self._store.create()
        options = replace(self._options, workspace=workspace_in(self._store))
        with _lock(self._store, self._folder):
            record = self.record()
            if not is_past:
                if not _is_plausible(last, record):  # what it would record is not true
                    return record, []
                record = record.without_future_times(now)
            for source in found:
                if _is_known(record, source):
                    continue
                dataset = read_day(source, options)
                if record.begun and not new_classes:
                    _require_known_classes(record, dataset, source)
                self._add(record, source, dataset, now)
                self._save(record)  # now: a process that is killed repeats one day at most
            self._complete(record, Search(first=first, last=last, at=_text(now)), is_past=is_past)
        return record, _remarks(record, {each.day for each in found}, first, last)

    def _complete(self, record: Record, search: Search, *, is_past: bool) -> None:
        """Record that an ingestion is complete, unless an earlier one searched for the same."""
        is_new = not any(
            (each.first, each.last) == (search.first, search.last) for each in record.searches
        )
        if is_new and not is_past:
            record.searches.append(search)
        if record.days and (not record.begun or (is_new and not is_past)):
            record.begun = True
            self._save(record)

    def _save(self, record: Record) -> None:
        _write_record(self._store.root / self._file, record)
        fault_injection.failpoint("ingest:recorded")

    def _add(self, record: Record, source: SourceDay, dataset: Dataset, now: datetime) -> None:
        """Store the content of a day, unless the store has it, and add it to the record."""
        day = record.days.get(source.day)
        if day is not None and day.versions[-1].digest == dataset.digest:
            day.fingerprint = source.fingerprint  # the same content was written again
            day.versions[-1] = day.versions[-1].model_copy(update=_skipped(dataset))
            return
        self._write(dataset, source.day)
        version = DayVersion(
            day=source.day,
            version=day.versions[-1].version + 1 if day is not None else 1,
            digest=dataset.digest,
            image_shape=dataset.image_shape,
            train=len(dataset.train),
            test=len(dataset.test),
            validation=0 if dataset.validation is None else len(dataset.validation),
            ingested_at=_text(now),
            **_skipped(dataset),
        )
        if day is None:
            record.days[source.day] = _Day(fingerprint=source.fingerprint, versions=[version])
        else:
            day.fingerprint = source.fingerprint
            day.versions.append(version)
        known = set(record.class_names)
        record.class_names += tuple(each for each in dataset.class_names if each not in known)

    def _write(self, dataset: Dataset, day: date) -> None:
        folder = f"{self._folder}/{day}/{dataset.digest}"
        target = self._store.local_root / folder
        if not target.is_dir():
            make_durable_dir(target.parent)
            for left in target.parent.iterdir():  # by a process that died: this one has the lock
                if is_temporary_name(left.name):
                    shutil.rmtree(left, ignore_errors=True)
            temporary = target.with_name(temporary_name(dataset.digest))
            try:
                with os_errors_as_store_errors(f"write {target}"):
                    dataset_writer.write_part(dataset, temporary)
                fault_injection.failpoint("ingest:written")
                publish_dir(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            fault_injection.failpoint("ingest:published")
        if self._store.is_remote:
            with os_errors_as_store_errors(f"write {self._store.root / folder}"):
                upload_folder(target, self._store.root / folder)

    def create_dataset(self, versions: Sequence[DayVersion], source: str) -> str:
        """Store the list of days that is a dataset, unless the store has it.

        Args:
            versions: Versions of the days, in order.
            source: Description of the origin.

        Returns:
            Digest of the dataset.
        """
        parts = [each.part for each in versions]
        digest = dataset_writer.digest_of_parts(parts)
        target = self._store.local_root / "datasets" / self.name / digest
        if not target.is_dir():
            temporary = target.with_name(temporary_name(digest))
            try:
                with os_errors_as_store_errors(f"write {target}"):
                    dataset_writer.write_parts(
                        temporary, name=self.name, source=source, parts=parts
                    )
                publish_dir(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        if not self._store.has_dataset(self.name, digest):
            folder = self._store.dataset_folder(self.name, digest)
            with os_errors_as_store_errors(f"write {folder}"):
                upload_folder(target, folder)
        return digest

    def new_images(self, version: DayVersion, earlier: DayVersion | None) -> int:
        """Return the number of images of a version that an earlier one does not have.

        Args:
            version: Version of a day.
            earlier: Earlier version of the same day; None if there is none.
        """
        if earlier is None:
            return version.rows
        if earlier.digest == version.digest:
            return 0
        counts = [self._count(each) for each in (version, earlier)]
        return sum(max(0, number - counts[1].get(key, 0)) for key, number in counts[0].items())

    def _count(self, version: DayVersion) -> dict[bytes, int]:
        """Return how often a version has each image with its label, by a digest of both."""
        folder = self._store.local_dataset(self.name, version.part)
        part = dataset_reader.read_part(folder.parents[2], version.part, workspace_in(self._store))
        counts: dict[bytes, int] = {}
        for split in part.splits.values():
            for image, label in zip(split.images, split.labels, strict=True):
                content = np.ascontiguousarray(image).tobytes() + part.class_names[label].encode()
                key = hashlib.blake2b(content, digest_size=16).digest()
                counts[key] = counts.get(key, 0) + 1
        return counts


def workspace_in(store: Store) -> Workspace:
    """Return where pixels are held that belong to no run: in memory, or in a store's staging."""
    return Workspace(store.local_root / "staging")


def _skipped(dataset: Dataset) -> dict[str, Any]:
    """Return the fields of a version about the pictures that were skipped."""
    return {
        "unreadable": len(dataset.unreadable),
        "unreadable_examples": dataset.unreadable[:MAX_UNREADABLE_EXAMPLES],
    }


def _is_plausible(today: date, record: Record) -> bool:
    """Return whether a clock can be right: no day after tomorrow was ingested before."""
    return max(record.days, default=today) <= today + timedelta(days=1)


def _no_later(moment: str, now: datetime) -> str:
    return _text(now) if datetime.fromisoformat(moment) > now else moment


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


@contextmanager
def _lock(store: Store, folder: str) -> Iterator[None]:
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
    records = (_read_record(path) for path in _record_paths(store, name))
    return {day.versions[-1].part for record in records for day in record.days.values()}


def forget_parts(store: Store, name: str, parts: Collection[str]) -> None:
    """Remove versions of days from all records of a dataset, before their images are deleted.

    If a run asks for such a day later, it is ingested from its source again.

    Args:
        store: Store with the days.
        name: Name of the dataset.
        parts: Paths of the versions, see `DayVersion.part`.
    """
    with _lock(store, f"datasets/{name}/days"):
        for path in _record_paths(store, name):
            record = _read_record(path)
            days = {
                date: day.model_copy(update={"versions": versions})
                for date, day in record.days.items()
                if (versions := [each for each in day.versions if each.part not in parts])
            }
            if days != record.days:
                _write_record(path, record.model_copy(update={"days": days}))


def _record_paths(store: Store, name: str) -> list[Path]:
    folder = store.dataset_folder(name, "days")
    with os_errors_as_store_errors(f"list {folder}"):
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if re.fullmatch(_RECORD_NAME, path.name))


def _write_record(path: Path, record: Record) -> None:
    write_bytes(path, record.model_dump_json().encode() + b"\n")


def _read_record(path: Path) -> Record:
    return read_model(path, Record, "a record of ingested days")


def _is_known(record: Record, source: SourceDay) -> bool:
    known = record.days.get(source.day)
    return known is not None and known.fingerprint == source.fingerprint


def _require_known_classes(record: Record, dataset: Dataset, source: SourceDay) -> None:
    """Refuse a day with a class that no day before has."""
    new = sorted(set(dataset.class_names) - set(record.class_names))
    if new:
        shown = ", ".join(new[:_MAX_NAMED]) + ", …" * (len(new) > _MAX_NAMED)
        raise DataError(
            f"{source.address}: has the class {shown}, which no day before has; correct that day, "
            "or set dataset.new_classes to accept"
        )


def _remarks(record: Record, found: set[date], first: date | None, last: date) -> list[str]:
    """Return a remark on the days of a range that the source no longer has."""
    gone = [each.day for each in record.newest(first, last) if each.day not in found]
    if not gone:
        return []
    shown = ", ".join(map(str, gone[:_MAX_NAMED])) + ", …" * (len(gone) > _MAX_NAMED)
    days = "1 day is" if len(gone) == 1 else f"{len(gone)} days are"
    return [f"{days} no longer at {record.pattern}, and used as ingested: {shown}"]
