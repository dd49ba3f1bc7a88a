"""Walk forward over past days: train and promote as past nights would have, and measure accuracy.

Every window has a private store, so that its champions follow one another as they would have done.
The champion of each night is scored on the next day with images, which no run had seen then. If
several nights have the same next day, the champion of the last one counts.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nnbuild.config.schema import RunConfig
from nnbuild.data import dataset_reader, pixels
from nnbuild.data.day_record import Record
from nnbuild.data.day_versions import DatedSource
from nnbuild.data.labels import NONE
from nnbuild.engines import Engine
from nnbuild.errors import ConfigError, DataError
from nnbuild.evaluation.significance import mcnemar_test
from nnbuild.pipeline.days import read_options, window_of
from nnbuild.pipeline.run import decide_and_commit, open_run, run_context, train_and_evaluate
from nnbuild.pipeline.unchanged import too_little_news
from nnbuild.runtime.date_patterns import is_dated
from nnbuild.scoring.models import model_of_run, start_engine
from nnbuild.store import Store, champion
from nnbuild.store.filesystem import make_durable_dir
from nnbuild.store.manifests import Manifest

MAX_NIGHTS = 3660
_BATCH = 2048
_LOOK_AHEAD = 7  # days in which to look for the next one with images


SCHEMA = pa.schema(
    [
        ("window", pa.int32()),
        ("day", pa.date32()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("images", pa.int64()),
        ("test_accuracy", pa.float64()),
        ("champion_day", pa.date32()),
        ("next_day", pa.date32()),
        ("next_images", pa.int64()),
        ("next_correct", pa.int64()),
        ("run_correct", pa.int64()),
    ]
)
"""Columns of the table of nights, see `Night`."""


class Night(BaseModel):
    """One night of a backtest.

    Attributes:
        window: Number of days that runs were trained on; None for all.
        day: The day.
        outcome: Outcome of the gate; `skipped` without a run.
        reason: Reason for it.
        images: Number of images that the run was trained, validated and tested on; 0 without one.
        test_accuracy: Accuracy of the run on its test images.
        champion_day: Day whose run was the champion after the night; None without a champion.
        next_day: The next day with images, on which the champion was scored; None if there is none.
        next_images: Number of its images.
        next_correct: Number of these that the champion classified correctly.
        run_correct: The same for the run of the night; None without one.
    """

    model_config = ConfigDict(frozen=True)
    window: int | None
    day: date
    outcome: str
    reason: str
    images: int = 0
    test_accuracy: float | None = None
    champion_day: date | None = None
    next_day: date | None = None
    next_images: int = 0
    next_correct: int | None = None
    run_correct: int | None = None


class WindowResult(BaseModel):
    """Summary of the nights of a window.

    Attributes:
        window: Number of days; None for all.
        runs: Number of runs.
        promoted: Number of runs that became the champion.
        images: Number of images of the days that followed, of those days on which every window had
            a champion; each image counts once. Windows without any champion do not restrict the
            days, and have 0 images.
        accuracy: Fraction of these that the champion of the night before classified correctly; None
            without images.
        difference: Accuracy minus that of the best window, on the same images.
        low: Lower end of the 95 % confidence interval of the difference.
        high: Upper end of the interval.
        p_worse: One-sided p-value of McNemar's exact test; small if the window is worse than the
            best one.
    """

    model_config = ConfigDict(frozen=True)
    window: int | None
    runs: int
    promoted: int
    images: int
    accuracy: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_worse: float | None = None


@dataclass(frozen=True)
class Backtest:
    """Result of a backtest.

    Attributes:
        nights: Every night of every window.
        windows: Summary of each window, the best first.
    """

    nights: Sequence[Night]
    windows: Sequence[WindowResult]


def backtest(
    config: RunConfig,
    store: Store,
    first: date,
    last: date,
    *,
    windows: Sequence[int | None],
    now: datetime,
    on_night: Callable[[Night], None] = lambda _: None,
) -> Backtest:
    """Make the runs of past nights, for several windows.

    The days are ingested into the store, and everything else goes to temporary stores: runs and
    champions of the store are not touched. Each run uses the versions of the days that a run with
    `as_of` would use.

    Args:
        config: Settings of the runs, whose dataset has `{date}`.
        store: Store that the days are ingested into.
        first: First night.
        last: Last night.
        windows: Windows to compare, in days; None for all days.
        now: Aware time.
        on_night: Callback for the result of each night.

    Raises:
        ConfigError: The dataset has no `{date}`, or the range is invalid.
        DataError: No window has images, or a day cannot be read.
    """
    _require_valid(config, first, last, windows)
    source = DatedSource(store, config.dataset.name, read_options(config.dataset))
    longest = None if None in windows else max(filter(None, windows))
    begin = None if longest is None else first - timedelta(days=longest - 1)
    today = now.astimezone(ZoneInfo(config.dataset.timezone)).date()
    accept = config.dataset.new_classes == "accept"
    end = min(today, last + timedelta(days=_LOOK_AHEAD))
    record, _ = source.ingest(begin, end, now, new_classes=accept, is_past=True)
    if not record.newest(begin, last):
        raise DataError(f"{source.pattern}: no labelled images until {last}; check the path")
    nights: list[Night] = []
    answers: dict[int | None, dict[date, NDArray[np.bool_]]] = {}
    for window in windows:
        walk = _Walk(config, store, source, record, window)
        for night in walk.nights(first, min(last, today)):
            nights.append(night)
            on_night(night)
        answers[window] = walk.answers
    return Backtest(nights, _summaries(nights, answers))


def _require_valid(
    config: RunConfig, first: date, last: date, windows: Sequence[int | None]
) -> None:
    if not is_dated(config.dataset.name):
        raise ConfigError(
            f"dataset.name is {config.dataset.name!r}, expected a path with {{date}} in place of "
            "the day",
            setting="dataset.name",
            value=config.dataset.name,
        )
    if last < first:
        raise ConfigError(f"the range from {first} to {last} ends before it begins; swap the dates")
    if (last - first).days >= MAX_NIGHTS:
        raise ConfigError(f"the range from {first} to {last} has more than {MAX_NIGHTS} nights")
    if not windows or len(set(windows)) < len(windows):
        raise ConfigError(
            f"windows are {list(windows)}, expected different numbers of days",
            setting="windows",
            value=windows,
        )


class _Walk:
    """A walk over the nights, with one window and a private store.

    Args:
        config: Settings of the runs.
        store: Store with the days.
        source: Source of the days.
        record: What was ingested from it.
        window: Number of days to train on; None for all.

    Attributes:
        answers: For each day that followed a night, whether the champion classified each image
            correctly.
    """

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        source: DatedSource,
        record: Record,
        window: int | None,
    ) -> None:
        self._config, self._store, self._source, self._record = config, store, source, record
        self._window = window
        self.answers: dict[date, NDArray[np.bool_]] = {}

    def nights(self, first: date, last: date) -> Iterator[Night]:
        """Yield the results of the nights, in order."""
        with tempfile.TemporaryDirectory(prefix="nnbuild-backtest-") as folder:
            private = Store(Path(folder) / "store")
            private.create()
            self._share_days(private)
            for number in range((last - first).days + 1):
                yield self._night(private, first + timedelta(days=number), Path(folder))

    def _share_days(self, private: Store) -> None:
        """Link the ingested days into a private store; a remote store's are ingested again.

        The record is copied: a day that is corrected while the nights are repeated must not enter
        the user's record at the time of a night.
        """
        if self._store.is_remote:
            return
        folder = Path("datasets") / self._source.name / "days"
        days, own = self._store.root / folder, private.root / folder
        for version in days.glob("[!.]*/[!.]*/"):
            link = own / version.relative_to(days)
            make_durable_dir(link.parent)
            link.symlink_to(version, target_is_directory=True)
        for record in days.glob("[!.]*.json"):
            shutil.copyfile(record, own / record.name)

    def _night(self, private: Store, day: date, folder: Path) -> Night:
        dataset = self._config.dataset.model_copy(update={"window": self._window, "as_of": day})
        gate = self._config.gate.model_copy(update={"approval": "auto"})  # nobody answers
        config = self._config.model_copy(update={"dataset": dataset, "gate": gate})
        zone = ZoneInfo(dataset.timezone)
        now = datetime.combine(day, time(23, 59), zone).astimezone(UTC)
        window = window_of(private, dataset, now)
        earlier = max(private.run_ids(), default=None)
        night = Night(window=self._window, day=day, outcome="skipped", reason="no labelled images")
        run_id: str | None = None
        if window.versions:
            reason = None
            if earlier is not None:
                reason = too_little_news(window, dataset, private.manifest(earlier))
            if reason is None:
                run_id = _train(config, private, now)
                night = _described(night, private.manifest(run_id))
            else:
                night = night.model_copy(update={"reason": reason})
        return self._scored(night, private, run_id, folder)

    def _scored(self, night: Night, private: Store, run_id: str | None, folder: Path) -> Night:
        """Score the champion, and the run of the night, on the day that follows."""
        current = champion.currents(private)
        holder = current[self._source.name].run_id if self._source.name in current else None
        if holder is None:
            return night
        found: dict[str, object] = {"champion_day": _manifest_day(private.manifest(holder))}
        following = self._following(night.day)
        if following is not None:
            next_day, part = following
            correct = {
                each: _correct(private, private.manifest(each), part, folder)
                for each in {holder, run_id}
                if each is not None
            }
            self.answers[next_day] = correct[holder]
            found |= {
                "next_day": next_day,
                "next_images": len(correct[holder]),
                "next_correct": int(correct[holder].sum()),
                "run_correct": None if run_id is None else int(correct[run_id].sum()),
            }
        return night.model_copy(update=found)

    def _following(self, day: date) -> tuple[date, "_Part"] | None:
        """Return the next day with images, if there is one within a week."""
        versions = self._record.newest(day + timedelta(days=1), day + timedelta(days=_LOOK_AHEAD))
        if not versions:
            return None
        path = self._store.local_dataset(self._source.name, versions[0].part)
        workspace = pixels.workspace_in(self._store)
        part = dataset_reader.read_part(path.parents[2], versions[0].part, workspace)
        splits = part.splits.values()
        return versions[0].day, _Part(
            pixels.concatenate([split.images for split in splits]),
            [part.class_names[label] for split in splits for label in split.labels],
        )


@dataclass(frozen=True)
class _Part:
    """The images of a day, with the names of their classes."""

    images: NDArray[np.uint8]
    labels: list[str]


def _train(config: RunConfig, private: Store, now: datetime) -> str:
    run = open_run(config, private.root, now=now)
    with run_context(run):
        train_and_evaluate(run)
        return decide_and_commit(run, past_day_counts=True).run_id


def _described(night: Night, manifest: Manifest) -> Night:
    data, decided = manifest.steps.load_data, manifest.steps.decide
    return night.model_copy(
        update={
            "outcome": "" if decided is None else decided.outcome,
            "reason": "" if decided is None else decided.reason,
            "images": data.train + data.test + data.validation,
            "test_accuracy": manifest.row.test_accuracy,
        }
    )


def _manifest_day(manifest: Manifest) -> date | None:
    return manifest.steps.load_data.day


def _correct(store: Store, manifest: Manifest, part: _Part, folder: Path) -> NDArray[np.bool_]:
    """Return whether a run's model classifies each image of a day correctly."""
    data = manifest.steps.load_data
    if part.images.shape[1:] != data.image_shape:
        raise DataError(
            f"images of height, width, channels {part.images.shape[1:]} on the day after "
            f"{data.day}, but the model of that day takes {data.image_shape}; correct the day"
        )
    numbers = {name: number for number, name in enumerate(data.class_names)}
    labels = np.array([numbers.get(name, NONE) for name in part.labels])
    model = model_of_run(store, manifest)
    name = f"the model of run {manifest.run_id}"
    engine: Engine = start_engine(model, folder, threads=None, batch_size=_BATCH, name=name)
    logits = [
        engine.logits(part.images[first : first + _BATCH])
        for first in range(0, len(labels), _BATCH)
    ]
    correct: NDArray[np.bool_] = np.concatenate(logits).argmax(axis=1) == labels
    return correct


def _summaries(
    nights: Sequence[Night], answers: dict[int | None, dict[date, NDArray[np.bool_]]]
) -> list[WindowResult]:
    """Return the summary of each window, the best first, on the days that all have.

    A window can have its first champion later than another one; one without any is left out.
    """
    of_windows = [set(each) for each in answers.values() if each]
    days = set.intersection(*of_windows) if of_windows else set()
    shared = {
        window: {day: each for day, each in sorted(of_window.items()) if day in days}
        for window, of_window in answers.items()
    }
    results = []
    for window, of_window in shared.items():
        own = [night for night in nights if night.window == window]
        correct = np.concatenate([np.empty(0, bool), *of_window.values()])
        results.append(
            WindowResult(
                window=window,
                runs=sum(night.images > 0 for night in own),
                promoted=sum(night.outcome == "promoted" for night in own),
                images=len(correct),
                accuracy=float(correct.mean()) if len(correct) else None,
            )
        )
    results.sort(key=lambda each: -1 if each.accuracy is None else each.accuracy, reverse=True)
    best = shared[results[0].window]
    return [results[0], *(_compared(each, shared[each.window], best) for each in results[1:])]


def _compared(
    result: WindowResult, own: dict[date, NDArray[np.bool_]], best: dict[date, NDArray[np.bool_]]
) -> WindowResult:
    if not own:
        return result
    paired = mcnemar_test(*(np.concatenate([*each.values()]) for each in (best, own)))
    return result.model_copy(
        update={
            "difference": paired.difference,
            "low": paired.low,
            "high": paired.high,
            "p_worse": paired.p_worse,
        }
    )
