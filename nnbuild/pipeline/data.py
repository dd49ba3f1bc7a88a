"""The steps that load and check the dataset, before training begins."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnbuild.config.schema import RunConfig
from nnbuild.config.sections import DatasetConfig
from nnbuild.data import checks, tables
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.options import ReadOptions
from nnbuild.data.sources import default_cache, load
from nnbuild.errors import DataError, InputError, one_line
from nnbuild.pipeline.step import cached_step
from nnbuild.store.filesystem import make_durable_dir
from nnbuild.store.run import Run
from nnbuild.store.step_results import Check, CheckedData, LoadedData
from nnbuild.store.store import Store

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
    dataset = _read_source(run.config.dataset, cache=cache, progress=progress)
    store = Store(run.store)
    location = store.dataset_name(dataset.name, dataset.digest)
    files: dict[str, str] = {}
    if not store.has_dataset(dataset.name, dataset.digest):
        folder = staged_dataset(run)
        location = run.relative(folder)
        make_durable_dir(folder)  # it refuses to create a store that disappeared again
        tables.write_dataset(dataset, folder)
        files = run.digests(*(path.relative_to(run.folder).as_posix() for path in folder.iterdir()))
    return LoadedData(
        name=dataset.name,
        digest=dataset.digest,
        source=dataset.source,
        folder=location,
        image_shape=dataset.image_shape,
        classes=dataset.classes,
        class_names=dataset.class_names,
        train=len(dataset.train),
        test=len(dataset.test),
        validation=0 if dataset.validation is None else len(dataset.validation),
        pixel_scales=dict(dataset.pixel_scales),
        files=files,
    )


def _read_source(
    config: DatasetConfig, *, cache: Path | None = None, progress: DownloadProgress | None = None
) -> Dataset:
    return load(
        config.name,
        data_dir=config.data_dir,
        cache=cache or default_cache(),
        fallback=config.fallback,
        progress=progress,
        options=_options(config),
    )


def source_digest(config: DatasetConfig) -> str:
    """Return the digest of the dataset as it is at its source now.

    The source is read completely. Sizes and modification times would be cheaper, but miss a file
    that was fixed and copied with its old time.

    Raises:
        NnbuildError: The source cannot be read.
    """
    return _read_source(config).digest


def _options(config: DatasetConfig) -> ReadOptions:
    """Return the settings for reading files."""
    return ReadOptions(
        image_column=config.image_column,
        label_column=config.label_column,
        keys=config.array_keys,
        pixel_max=config.pixel_max,
        skip_other_files=config.other_files == "skip",
    )


def read_data(run: Run, data: LoadedData) -> Dataset:
    """Read the dataset of a run, from staging or, once it is committed, from the store."""
    return tables.read_dataset(dataset_folder(run, data))


def dataset_folder(run: Run, data: LoadedData) -> Path:
    """Return a local folder with the dataset of a run."""
    folder = run.root / data.folder
    if folder.is_dir():
        return folder
    # The store is remote, or a run with this dataset was committed since, perhaps this one.
    return Store(run.store).local_dataset(data.name, data.digest)


def read_golden(config: RunConfig, data: LoadedData) -> Split:
    """Read the fixed set of the gate: the test split of `gate.golden`, or all of its images.

    Args:
        config: Resolved config, which names the set.
        data: Dataset of the run, whose class names define the labels.

    Returns:
        Images, and labels as in the dataset of the run.

    Raises:
        DataError: The source is missing or damaged, or has other images or classes.
    """
    address = str(config.gate.golden)
    try:
        golden = load(
            address,
            data_dir=config.dataset.data_dir,
            cache=default_cache(),
            options=replace(_options(config.dataset), hold_out=False),
        )
    except InputError as error:
        raise DataError(f"gate.golden {error}") from error
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
        read_golden(run.config, data)
    results = checks.check(read_data(run, data), run.config.dataset.checks)
    checks.require(results)
    return CheckedData(checks=tuple(as_check(each) for each in results))


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
