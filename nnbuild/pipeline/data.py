"""Load and check: the data, before a second is spent on training."""

from collections.abc import Callable
from pathlib import Path

from nnbuild.config.sections import DatasetConfig
from nnbuild.data import checks, tables
from nnbuild.data.dataset import Dataset
from nnbuild.data.options import ReadOptions
from nnbuild.data.sources import default_cache, load
from nnbuild.pipeline.step import cached_step
from nnbuild.store.filesystem import make_durable_dir
from nnbuild.store.run import Run
from nnbuild.store.step_results import Check, CheckedData, LoadedData
from nnbuild.store.store import Store

Progress = Callable[[str, int, int | None], None]


def staged_dataset(run: Run) -> Path:
    """Where the run keeps a dataset that the store does not hold yet."""
    return run.folder / "dataset"


@cached_step(LoadedData)
def load_data(
    run: Run, *, cache: Path | None = None, progress: Progress | None = None
) -> LoadedData:
    """Read the dataset, and ingest it as Parquet unless the store has it.

    Args:
        run: in staging.
        cache: where downloads are kept.
        progress: is told of a download: file, bytes done, bytes in all if known.

    Raises:
        DataError: the source is missing, damaged, or not what it claims to be.
        ConfigError: the dataset's name is not known.
    """
    dataset = _read_source(run.config.dataset, cache=cache, progress=progress)
    store = Store(run.store)
    place = store.dataset_name(dataset.name, dataset.digest)
    files: dict[str, str] = {}
    if not store.has_dataset(dataset.name, dataset.digest):
        folder = staged_dataset(run)
        place = run.relative(folder)
        make_durable_dir(folder)  # which refuses to bring back a store that disappeared
        tables.write_dataset(dataset, folder)
        files = run.digests(*(path.relative_to(run.folder).as_posix() for path in folder.iterdir()))
    return LoadedData(
        name=dataset.name,
        digest=dataset.digest,
        source=dataset.source,
        folder=place,
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
    wanted: DatasetConfig, *, cache: Path | None = None, progress: Progress | None = None
) -> Dataset:
    return load(
        wanted.name,
        data_dir=wanted.data_dir,
        cache=cache or default_cache(),
        fallback=wanted.fallback,
        progress=progress,
        options=_options(wanted),
    )


def source_digest(wanted: DatasetConfig) -> str:
    """Return the digest of the dataset as its source has it now, which is read whole.

    Sizes and times of files would be cheaper, and the same for a file that was fixed and copied
    with its old time.

    Raises:
        NnbuildError: The source cannot be read.
    """
    return _read_source(wanted).digest


def _options(config: DatasetConfig) -> ReadOptions:
    """Return the settings that say how files are to be read."""
    return ReadOptions(
        image_column=config.image_column,
        label_column=config.label_column,
        keys=config.array_keys,
        pixel_max=config.pixel_max,
        skip_other_files=config.other_files == "skip",
    )


def read_data(run: Run, data: LoadedData) -> Dataset:
    """The dataset of a run, from the store or, before it is committed, from staging."""
    folder = run.root / data.folder
    if (
        not folder.is_dir()
    ):  # another run of the same dataset was committed, or this one was; or the store is remote
        folder = Store(run.store).local_dataset(data.name, data.digest)
    return tables.read_dataset(folder)


@cached_step(CheckedData)
def check_data(run: Run, data: LoadedData) -> CheckedData:
    """Look at the data before a second is spent on training.

    Raises:
        CheckError: a hard check is violated; the message has the numbers.
    """
    results = checks.check(read_data(run, data), run.config.dataset.checks)
    checks.require(results)
    return CheckedData(checks=tuple(as_check(each) for each in results))


def as_check(result: checks.CheckResult) -> Check:
    """A check's result, every value as text."""
    return Check(
        name=result.name,
        passed=result.passed,
        hard=result.hard,
        measured=str(result.measured),
        bound=result.bound,
        detail=result.detail,
    )
