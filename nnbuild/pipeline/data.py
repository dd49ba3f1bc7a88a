"""The steps that load and check the dataset, before training begins."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nnbuild.config.sections import DatasetConfig
from nnbuild.data import checks, dataset_reader, dataset_writer
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.file_tree import path_exists
from nnbuild.data.listing import fingerprint_of_source
from nnbuild.data.pixels import IN_MEMORY, Workspace, workspace_in
from nnbuild.data.preprocessing import fit_dataset
from nnbuild.data.sources import NAMES, load
from nnbuild.errors import DataError, InputError, one_line
from nnbuild.evaluation.slices import MAX_VALUES
from nnbuild.pipeline.days import parts_table, preprocessing_of, read_options, select_days
from nnbuild.pipeline.step import cached_step, staged_table
from nnbuild.runtime.date_patterns import is_dated
from nnbuild.runtime.environment import cache_folder
from nnbuild.store import schemas
from nnbuild.store.filesystem import make_durable_dir
from nnbuild.store.run import Run
from nnbuild.store.step_results import (
    MAX_UNREADABLE_EXAMPLES,
    Check,
    CheckedData,
    LoadedData,
)
from nnbuild.store.store import Store
from nnbuild.store.tables import write_table

DownloadProgress = Callable[[str, int, int | None], None]
"""Callback for a download: name of the file, bytes so far, and total bytes if known."""


def staged_dataset(run: Run) -> Path:
    """Return the folder for a dataset that the store does not have yet."""
    return run.folder / "dataset"


@cached_step(LoadedData)
def load_data(
    run: Run, *, cache: Path | None = None, progress: DownloadProgress | None = None
) -> LoadedData:
    """Read the dataset, and write it to staging as Parquet unless the store has it.

    The days of a dated source are ingested into the store itself, where they stay, however the run
    ends: a dataset of days is a list of them.

    Args:
        run: Run in staging.
        cache: Folder for downloads; a folder of the user's cache if None.
        progress: Callback for the progress of downloads.

    Returns:
        Size, classes and location of the dataset.

    Raises:
        DataError: The source is missing, damaged, or not what it claims to be.
        ConfigError: The name of the dataset is unknown.
    """
    if is_dated(run.config.dataset.name):
        return _load_days(run)
    state = source_fingerprint(run.config.dataset)
    dataset = _read_source(
        run.config.dataset,
        cache=cache,
        progress=progress,
        workspace=workspace_of(run, keeps_maps=False),
    )
    store = Store(run.store)
    location = store.dataset_name(dataset.name, dataset.digest)
    files: dict[str, str] = {}
    if not store.has_dataset(dataset.name, dataset.digest):
        folder = staged_dataset(run)
        location = run.relative(folder)
        make_durable_dir(folder)  # it does not create again a store that disappeared
        dataset_writer.write_dataset(dataset, folder)
        files = run.digests(*(path.relative_to(run.folder).as_posix() for path in folder.iterdir()))
    return _described(
        dataset,
        run.config.dataset,
        digest=dataset.digest,
        folder=location,
        pixel_scales=dict(dataset.pixel_scales),
        fingerprint=state,
        unreadable=len(dataset.unreadable),
        unreadable_examples=dataset.unreadable[:MAX_UNREADABLE_EXAMPLES],
        files=files,
    )


def _load_days(run: Run) -> LoadedData:
    """Ingest the days of the run's window, and write `dataset_parts`."""
    store = Store(run.store)
    window = select_days(store, run.config.dataset, run.started_at)
    name = window.source.name
    digest = window.source.create_dataset(window.versions, window.description)
    dataset = dataset_reader.read_dataset(store.local_dataset(name, digest), workspace_of(run))
    table = parts_table(window.versions, run.config)
    write_table(staged_table(run, "dataset_parts"), table, schemas.DATASET_PARTS)
    return _described(
        dataset,
        run.config.dataset,
        digest=digest,
        folder=store.dataset_name(name, digest),
        day=window.day,
        days=window.versions,
        remarks=window.remarks,
        unreadable=sum(each.unreadable for each in window.versions),
        unreadable_examples=tuple(
            message for each in window.versions for message in each.unreadable_examples
        )[:MAX_UNREADABLE_EXAMPLES],
        files=run.digests("tables/dataset_parts.parquet"),
    )


def _described(dataset: Dataset, config: DatasetConfig, **others: Any) -> LoadedData:
    settings = preprocessing_of(config)
    return LoadedData(
        name=dataset.name,
        source=dataset.source,
        image_shape=dataset.image_shape,
        classes=dataset.classes,
        class_names=dataset.class_names,
        train=len(dataset.train),
        test=len(dataset.test),
        validation=0 if dataset.validation is None else len(dataset.validation),
        preprocessing=None if settings is None else settings.model_dump(mode="json"),
        **others,
    )


def _read_source(
    config: DatasetConfig,
    *,
    cache: Path | None = None,
    progress: DownloadProgress | None = None,
    workspace: Workspace = IN_MEMORY,
) -> Dataset:
    dataset = load(
        config.name,
        data_dir=config.data_dir,
        cache=cache or cache_folder(),
        fallback=config.fallback,
        progress=progress,
        options=replace(read_options(config), workspace=workspace),
    )
    return fit_dataset(dataset, preprocessing_of(config))


def source_digest(config: DatasetConfig, store: Store, now: datetime) -> str:
    """Return the digest of the dataset as it is at its source now.

    The source is read completely, except for the days that the store has ingested.

    Args:
        config: Settings of the dataset.
        store: Store that new days of a dated source are ingested into.
        now: Aware time, which decides on the days.

    Raises:
        NnbuildError: The source cannot be read.
    """
    if is_dated(config.name):
        return select_days(store, config, now).digest
    return _read_source(config, workspace=workspace_in(store)).digest


def source_fingerprint(config: DatasetConfig) -> str | None:
    """Return a digest of names, sizes and times of the files at a path; None for a named dataset.

    The pictures that a table at the path names, and the file of `dataset.metadata`, count too.

    It looks at each file, and reads none but a table of paths. If the digest is the same, so is the
    dataset. It is also None for a missing path, for which reading the data gives a better error.
    """
    if config.name in NAMES or not path_exists(config.name):
        return None
    return fingerprint_of_source(
        Path(config.name), metadata=config.metadata, image_column=config.image_column
    )


def read_data(run: Run, data: LoadedData) -> Dataset:
    """Read the dataset of a run, from staging or, once it is committed, from the store."""
    return dataset_reader.read_dataset(dataset_folder(run, data), workspace_of(run))


def read_test_data(run: Run, data: LoadedData) -> Split:
    """Read the test split of the dataset of a run; see `read_data`."""
    return dataset_reader.read_test_split(dataset_folder(run, data), workspace_of(run))


def workspace_of(run: Run, *, keeps_maps: bool = True) -> Workspace:
    """Return where a run holds pixels: in memory, or in its folder in staging if too many.

    Args:
        run: Run in staging.
        keeps_maps: Whether later steps read the same dataset; see `Workspace`.
    """
    return Workspace(run.folder / "pixels", keeps_maps=keeps_maps)


def dataset_folder(run: Run, data: LoadedData) -> Path:
    """Return a local folder with the dataset of a run."""
    folder = run.root / data.folder
    if folder.is_dir():
        return folder
    # The store is remote, or a run with this dataset was committed since, perhaps this one.
    return Store(run.store).local_dataset(data.name, data.digest)


def read_golden(run: Run, data: LoadedData) -> Split:
    """Read the fixed set of the gate: the test split of `gate.golden`, or all of its images.

    Args:
        run: Run in staging, whose config names the set.
        data: Dataset of the run, whose class names define the labels.

    Returns:
        Images, and labels as in the dataset of the run.

    Raises:
        DataError: The source is missing or damaged, or has other images or classes.
    """
    config = run.config
    address = str(config.gate.golden)
    options = replace(
        read_options(config.dataset),
        hold_out=False,
        keep=(),
        metadata=None,
        workspace=workspace_of(run, keeps_maps=False),
    )
    try:
        golden = load(
            address,
            data_dir=config.dataset.data_dir,
            cache=cache_folder(),
            options=options,
        )
    except InputError as error:
        raise DataError(f"gate.golden {error}") from error
    golden = fit_dataset(golden, preprocessing_of(config.dataset))
    if golden.image_shape != data.image_shape:
        shapes = [" × ".join(map(str, each.image_shape)) for each in (golden, data)]
        raise DataError(
            f"gate.golden {address}: images of {shapes[0]}, expected {shapes[1]} as in the dataset"
        )
    unknown = [name for name in golden.class_names if name not in data.class_names]
    if unknown:
        raise DataError(
            f"gate.golden {address}: class {one_line(unknown[0])!r} is not one of the "
            f"{data.classes} classes of the dataset; remove its images"
        )
    labels = np.array([data.class_names.index(name) for name in golden.class_names], np.int16)
    return Split(golden.test.images, labels[golden.test.labels])


@cached_step(CheckedData)
def check_data(run: Run, data: LoadedData) -> CheckedData:
    """Check the dataset, and that the fixed set of the gate can be read, before training begins.

    Raises:
        CheckError: A hard check failed; the message has the measured values.
        DataError: `gate.golden` cannot be used.
    """
    if run.config.gate.enabled and run.config.gate.golden is not None:
        read_golden(run, data)
    dataset = read_data(run, data)
    _require_few_slices(dataset.test, run.config.gate.slices)
    results = checks.check(dataset, run.config.dataset.checks)
    if run.config.dataset.on_error == "skip":
        limit = float(run.config.dataset.max_errors or 0)
        results += (checks.unreadable(data.unreadable, data.unreadable_examples, limit),)
    checks.require(results)
    return CheckedData(checks=tuple(as_check(each) for each in results))


def _require_few_slices(test: Split, columns: Sequence[str]) -> None:
    """Refuse columns of `gate.slices` that have too many values to be tested."""
    for name in columns:
        count = 0 if test.kept is None else len(pc.unique(test.kept[name]))
        if count > MAX_VALUES:
            raise DataError(
                f"gate.slices: the column {name!r} has {count:,} values in the test images, "
                f"expected at most {MAX_VALUES}; group them, or remove it"
            )


def as_check(result: checks.CheckResult) -> Check:
    """Return the result of a check with every value as text."""
    return Check(
        name=result.name,
        passed=result.passed,
        hard=result.hard,
        measured=str(result.measured),
        bound=result.bound,
        detail=result.detail,
    )
