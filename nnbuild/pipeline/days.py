"""The days that a run trains on: those of its window, or those that an earlier run has used."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from nnbuild.config.schema import RunConfig
from nnbuild.config.sections import DatasetConfig
from nnbuild.data.dataset_writer import digest_of_parts
from nnbuild.data.day_record import Record
from nnbuild.data.day_versions import DatedSource
from nnbuild.data.options import ReadOptions
from nnbuild.data.preprocessing import Preprocessing
from nnbuild.errors import ConfigError, DataError
from nnbuild.runtime.date_patterns import address_of_day, parse_day
from nnbuild.store import schemas
from nnbuild.store.manifests import Manifest
from nnbuild.store.step_results import DayVersion
from nnbuild.store.store import Store
from nnbuild.training.shuffling import training_rows

_NOT_OF_THE_DAYS = {"as_of", "data_dir", "fallback", "min_new", "new_classes", "checks"}


class Window(NamedTuple):
    """The days of a run.

    Attributes:
        source: Their source.
        first: First day of the window; None for no limit.
        day: Day of the run, which is the last day of the window.
        versions: The days that have images, in order.
        remarks: Remarks on days that are missing at the source, and on the choice of a past day.
    """

    source: DatedSource
    first: date | None
    day: date
    versions: tuple[DayVersion, ...]
    remarks: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Return the digest of the dataset of these days."""
        return digest_of_parts([each.part for each in self.versions])

    @property
    def description(self) -> str:
        """Return the origin of the days, for the manifest."""
        count = "1 day" if len(self.versions) == 1 else f"{len(self.versions)} days"
        span = f"from {self.versions[0].day} to {self.versions[-1].day}"
        return f"{self.source.pattern}: {count} {span}"


def read_options(config: DatasetConfig) -> ReadOptions:
    """Return the settings for reading files."""
    return ReadOptions(
        image_column=config.image_column,
        label_column=config.label_column,
        keys=config.array_keys,
        pixel_max=config.pixel_max,
        skip_other_files=config.other_files == "skip",
        preprocessing=preprocessing_of(config),
        max_errors=config.max_errors if config.on_error == "skip" else None,
        keep=config.keep,
        metadata=config.metadata,
    )


def preprocessing_of(config: DatasetConfig) -> Preprocessing | None:
    """Return the settings by which pictures become images; None to use them as they are."""
    names = ("image_size", "resize", "channels", "background")
    settings = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return Preprocessing.model_validate(settings) if settings else None


def day_of(config: DatasetConfig, now: datetime) -> date:
    """Return the day of a run.

    Args:
        config: Settings of the dataset.
        now: Aware time of the run.

    Raises:
        ConfigError: `as_of` has not come yet.
    """
    today = now.astimezone(ZoneInfo(config.timezone)).date()
    if config.as_of is not None and config.as_of > today:
        raise ConfigError(
            f"as_of is {config.as_of}, which is after today, {today}; give a past day",
            setting="dataset.as_of",
            value=config.as_of,
        )
    return config.as_of or today


def select_days(store: Store, config: DatasetConfig, now: datetime) -> Window:
    """Ingest what is new in the window of a run, and return its days; see `window_of`.

    Raises:
        DataError: No day of the window has images, a day cannot be read, or the days differ in the
            size of their images.
        ConfigError: `as_of` has not come yet, or the clock was set back.
    """
    window = window_of(store, config, now)
    if not window.versions:
        raise _no_days(config, window.first, window.day)
    _require_one_size(window.source.pattern, window.versions)
    return window


def window_of(store: Store, config: DatasetConfig, now: datetime) -> Window:
    """Ingest what is new in the window of a run, and return its days, which may be none.

    With `as_of`, these are the versions of the days that the run of that day used. If there was no
    such run, they are those that had been ingested by the end of that day.

    Args:
        store: Store for the days.
        config: Settings of the dataset, whose name has `{date}`.
        now: Aware time of the run.

    Raises:
        DataError: A day cannot be read.
        ConfigError: `as_of` has not come yet, or the clock was set back.
    """
    day = day_of(config, now)
    first = day - timedelta(days=config.window - 1) if config.window else None
    source = DatedSource(store, config.name, read_options(config))
    remarks: list[str]
    if config.as_of is not None and (run := run_of_day(store, config, day)) is not None:
        versions: list[DayVersion] = list(run.steps.load_data.days)
        _require_stored(store, run, versions)
        remarks = [f"as of {day}: the days as run {run.run_id} used them"]
    else:
        record, remarks = source.ingest(
            first,
            day,
            now,
            new_classes=config.new_classes == "accept",
            is_past=config.as_of is not None,
        )
        versions = record.newest(first, day)
        if config.as_of is None:
            _require_no_later_day(record, day)
        else:
            next_day = datetime.combine(day + timedelta(days=1), time(), ZoneInfo(config.timezone))
            versions, newest = record.known_at(next_day, first, day)
            remarks = [_past(day, len(versions), newest), *remarks]
    return Window(source, first, day, tuple(versions), tuple(remarks))


def _require_no_later_day(record: Record, day: date) -> None:
    """Refuse a clock that was set back: images of a later day have been ingested."""
    later = max(record.days, default=day)
    if later > day + timedelta(days=1):  # another timezone may be a day ahead
        raise ConfigError(
            f"the clock says {day}, but images of {later} have been ingested from "
            f"{record.pattern}; set the clock, or make the run of a past day with dataset.as_of",
            setting="dataset.as_of",
        )


def _require_stored(store: Store, run: Manifest, versions: Sequence[DayVersion]) -> None:
    """Require that the days of a run are still in the store."""
    name = run.steps.load_data.name
    lost = [each for each in versions if not store.has_dataset(name, each.part)]
    if lost:
        raise DataError(
            f"run {run.run_id} used version {lost[0].version} of {lost[0].day}, which is no longer "
            f"in {store.root}; restore datasets/{name}/{lost[0].part} from a copy"
        )


def _past(day: date, days: int, newest: int) -> str:
    """Describe how the days of a past day were chosen, if it had no run."""
    if not newest:
        return f"as of {day}: no run of that day; the days as they had been ingested by its end"
    which = "the days are" if newest == days else f"{newest} of the {days} days are"
    return f"as of {day}: no run of that day; {which} as they are now, being ingested later"


def _no_days(config: DatasetConfig, first: date | None, day: date) -> DataError:
    since = f"from {first} to {day}" if first is not None else f"until {day}"
    return DataError(
        f"{config.name}: no labelled images {since}; the last day would be "
        f"{address_of_day(config.name, day)}; check the path, the clock, and dataset.window"
    )


def _require_one_size(pattern: str, versions: Sequence[DayVersion]) -> None:
    shapes = {each.image_shape: each.day for each in versions}
    if len(shapes) > 1:
        (shape, day), (other_shape, other) = list(shapes.items())[:2]
        raise DataError(
            f"{pattern}: images of height, width, channels {shape} on {day} and {other_shape} on "
            f"{other}; correct one of the days, or shorten dataset.window"
        )


def run_of_day(store: Store, config: DatasetConfig, day: date) -> Manifest | None:
    """Return the newest run of a day on the same source and window; None if there is none.

    A run that was made `as_of` that day does not count: it is a copy.
    """
    settings = set(DatasetConfig.model_fields) - _NOT_OF_THE_DAYS
    for manifest in _runs_around(store, day):
        recorded = manifest.config.get("dataset", {})
        expected = config.model_dump(mode="json", include=settings)
        if (
            manifest.row.status == "succeeded"
            and manifest.steps.load_data.day == day
            and recorded.get("as_of") is None
            and all(recorded.get(name) == value for name, value in expected.items())
        ):
            return manifest
    return None


def _runs_around(store: Store, day: date) -> Iterator[Manifest]:
    """Yield the runs that may be of a day in some timezone, the newest first.

    Not found by their IDs: after a clock was ahead, new IDs contain its time until it has passed.
    """
    rows = store.read_table("runs", columns=["started_at"]).to_pylist()
    for row in sorted(rows, key=lambda row: str(row["run_id"]), reverse=True):
        if abs(row["started_at"].date() - day) <= timedelta(days=1):
            yield store.manifest(row["run_id"])


def settings_of_day(store: Store, day: str) -> dict[str, Any]:
    """Return the settings of the newest run of a day on labelled days.

    Args:
        store: Store with the run.
        day: The day, in ISO 8601 format.

    Raises:
        ConfigError: There is no such run, or there are runs on several datasets.
    """
    parsed = parse_day(day, "dataset.as_of")
    runs: dict[str, dict[str, Any]] = {}
    for manifest in _runs_around(store, parsed) if store.exists() else ():
        data, dataset = manifest.steps.load_data, manifest.config.get("dataset", {})
        is_original = manifest.row.status == "succeeded" and dataset.get("as_of") is None
        if is_original and data.day == parsed:
            runs.setdefault(dataset["name"], manifest.config)
    if len(runs) != 1:
        problem = f"runs on {' and '.join(sorted(runs))}" if runs else "no run on labelled days"
        raise ConfigError(
            f"{store.root} has {problem} for as_of {day}; give the dataset and the settings",
            setting="dataset.name",
        )
    return dict(next(iter(runs.values())))


def parts_table(versions: tuple[DayVersion, ...], config: RunConfig) -> pa.Table:
    """Return the table `dataset_parts` of a run: how many images of each day it uses for what.

    Args:
        versions: The days, in order.
        config: Resolved configuration, which decides on the validation images.
    """
    train = np.array([each.train for each in versions])
    rows = training_rows(int(train.sum()), sum(each.validation for each in versions), config)
    trained = np.bincount(np.searchsorted(np.cumsum(train), rows, side="right"))
    trained = np.pad(trained, (0, len(versions) - len(trained)))
    table = []
    for version, fitted in zip(versions, trained.tolist(), strict=True):
        for used_for, count in (
            ("train", fitted),
            ("validation", version.train - fitted + version.validation),
            ("test", version.test),
        ):
            if count:
                table.append(_row(version, used_for, count))
    return schemas.table_of(schemas.DATASET_PARTS, table)


def _row(version: DayVersion, used_for: str, rows: int) -> dict[str, Any]:
    return {
        "day": version.day,
        "version": version.version,
        "rows": rows,
        "digest": version.digest,
        "used_for": used_for,
        "ingested_at": datetime.fromisoformat(version.ingested_at).astimezone(UTC),
    }
