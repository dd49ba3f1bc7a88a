"""Find out, before training, whether a new run would only repeat an earlier one."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from nnbuild.config.schema import RunConfig, is_factory, resolve
from nnbuild.config.sections import DatasetConfig
from nnbuild.data.sources import NAMES
from nnbuild.errors import NnbuildError
from nnbuild.pipeline.data import source_digest, source_fingerprint
from nnbuild.pipeline.days import Window, window_of
from nnbuild.runtime import environment
from nnbuild.runtime.date_patterns import is_dated
from nnbuild.store.manifests import Manifest
from nnbuild.store.step_results import DayVersion
from nnbuild.store.store import Store

_RECENT = 100  # runs to look through; each costs a request if the store is remote
_NOT_COMPARED = {"dataset": {"data_dir", "min_new"}}


class Unchanged(NamedTuple):
    """Reason not to run.

    Attributes:
        run_id: ID of the earlier run.
        reason: Reason, as a part of a sentence.
    """

    run_id: str
    reason: str


def unchanged_since(store: Store, config: RunConfig, now: datetime) -> Unchanged | None:
    """Return the run that a new one would repeat, or None.

    The earlier run has the same settings, except for the location of the data, and the same code.
    Since then too little in the data is new: in the days of a dated source, fewer images than
    `dataset.min_new`; in other sources, nothing. Days that have left the window do not count. A run
    that failed, or repeated the run of a past day, is not considered.

    The check reads only what has changed, and needs no TensorFlow, except for the source of a
    user's own network.

    Args:
        store: Store with the earlier runs, which new days of a dated source are ingested into.
        config: Settings of the new run.
        now: Aware time.

    Raises:
        DataError: A day of a dated source cannot be read.
        ConfigError: The clock was set back.
    """
    if not store.exists() or config.dataset.as_of is not None:
        return None
    earlier = next(_same_runs(store, resolve(config)), None)
    if earlier is None or not _has_same_network(earlier, config):
        return None
    if is_dated(config.dataset.name):
        reason = too_little_news(window_of(store, config.dataset, now), config.dataset, earlier)
    else:
        reason = _same_data(store, config.dataset, now, earlier)
    return None if reason is None else Unchanged(earlier.run_id, reason)


def _same_runs(store: Store, config: RunConfig) -> Iterator[Manifest]:
    """Yield the recent committed runs with the same settings and code, the newest first."""
    settings = _compared(config.model_dump(mode="json"))
    for run_id in store.run_ids()[: -_RECENT - 1 : -1]:
        manifest = store.manifest(run_id)
        if (
            manifest.row.status == "succeeded"
            and manifest.code_version == environment.code_version()
            and _compared(manifest.config) == settings
        ):
            yield manifest


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        section: {key: each for key, each in value.items() if key not in _NOT_COMPARED[section]}
        if section in _NOT_COMPARED
        else value
        for section, value in settings.items()
    }


def _has_same_network(earlier: Manifest, config: RunConfig) -> bool:
    """Return whether a user's own network has the source that it had in an earlier run."""
    if not is_factory(config.model.name):
        return True
    from nnbuild.models.custom import factory_digest  # imports TensorFlow

    return earlier.steps.build_model.factory == factory_digest(config.model.name)


def too_little_news(window: Window, config: DatasetConfig, earlier: Manifest) -> str | None:
    """Return why the new images of a window do not justify a run; None if they do.

    Args:
        window: Days of the run.
        config: Settings of the dataset.
        earlier: Manifest of the earlier run.
    """
    used: dict[Any, DayVersion] = {each.day: each for each in earlier.steps.load_data.days}
    new = sum(window.source.new_images(each, used.get(each.day)) for each in window.versions)
    corrected = any(each.digest != used.get(each.day, each).digest for each in window.versions)
    if config.min_new:
        if new >= config.min_new:
            return None
        return f"{_count(new)} since run {earlier.run_id}; dataset.min_new is {config.min_new}"
    if new or corrected:
        return None
    return f"{_count(0)} since run {earlier.run_id}"


def _count(images: int) -> str:
    if not images:
        return "no new labelled images"
    return f"{images} new labelled image{'s' if images > 1 else ''}"


def _same_data(store: Store, config: DatasetConfig, now: datetime, earlier: Manifest) -> str | None:
    """Return the reason that the data are those of an earlier run; None if they differ."""
    reason = f"the data, the settings and the code are those of run {earlier.run_id}"
    data = earlier.steps.load_data
    if config.name in NAMES:  # whose content is published, and verified
        return reason if data.name == config.name else None
    try:
        state = source_fingerprint(config)
        same = state == data.fingerprint or source_digest(config, store, now) == data.digest
    except NnbuildError:  # the new run reports what is wrong with the source
        return None
    return reason if same else None
