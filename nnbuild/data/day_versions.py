"""Ingestion of a dated source: each day is stored once, by content, and its time is recorded.

A day that is corrected gets a new version, and the earlier ones are kept. The images of a version
are in `datasets/<name>/days/<day>/<digest>/`, the versions in the record of the source.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np

from nnbuild.data import dataset_reader, dataset_writer
from nnbuild.data.dataset import Dataset
from nnbuild.data.day_record import (
    Record,
    RecordedDay,
    Search,
    lock,
    read_record,
    utc_text,
    write_record,
)
from nnbuild.data.days import SourceDay, absolute, dataset_name, days_at, read_day
from nnbuild.data.options import DEFAULT, ReadOptions
from nnbuild.data.pixels import workspace_in
from nnbuild.errors import DataError
from nnbuild.runtime import fault_injection
from nnbuild.store.filesystem import (
    make_durable_dir,
    os_errors_as_store_errors,
    publish_dir,
    upload_folder,
)
from nnbuild.store.ids import is_temporary_name, temporary_name
from nnbuild.store.step_results import MAX_UNREADABLE_EXAMPLES, DayVersion
from nnbuild.store.store import Store

_MAX_NAMED = 3


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
        return read_record(path)

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
        found = days_at(self.pattern, first, last, self._options)
        if not found and not self._store.exists():
            return Record(pattern=self.pattern), []
        self._store.create()
        options = replace(self._options, workspace=workspace_in(self._store))
        with lock(self._store, self._folder):
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
            self._complete(
                record, Search(first=first, last=last, at=utc_text(now)), is_past=is_past
            )
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
        write_record(self._store.root / self._file, record)
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
            ingested_at=utc_text(now),
            **_skipped(dataset),
        )
        if day is None:
            record.days[source.day] = RecordedDay(
                fingerprint=source.fingerprint, versions=[version]
            )
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


def _skipped(dataset: Dataset) -> dict[str, Any]:
    """Return the fields of a version about the pictures that were skipped."""
    return {
        "unreadable": len(dataset.unreadable),
        "unreadable_examples": dataset.unreadable[:MAX_UNREADABLE_EXAMPLES],
    }


def _is_plausible(today: date, record: Record) -> bool:
    """Return whether a clock can be right: no day after tomorrow was ingested before."""
    return max(record.days, default=today) <= today + timedelta(days=1)


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
