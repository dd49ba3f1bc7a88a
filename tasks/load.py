"""Load: the dataset, verified and as Parquet."""

from prefect import task

from nnbuild import pipeline
from nnbuild.store import Run
from nnbuild.store.step_results import LoadedData
from tasks.prefect_side import STEP, can_be_retried, logger, run_name
from tasks.watching import displays


def _downloading(file: str, done: int, total: int | None) -> None:
    for display in displays():
        display.download(file, done, total)


@task(
    name="load",
    task_run_name=run_name("load {run.config.dataset.name}"),
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=can_be_retried,
    **STEP,
)
def load(run: Run) -> LoadedData:
    """Read the dataset of a run; see `nnbuild.pipeline.load_data`."""
    data = pipeline.load_data(run, progress=_downloading)
    logger().info("%s: %s images from %s", data.name, _counts(data), data.source)
    return data


def _counts(data: LoadedData) -> str:
    if data.validation:
        return f"{data.train:,} training, {data.validation:,} validation and {data.test:,} test"
    return f"{data.train:,} training and {data.test:,} test"


def told(run: Run, data: LoadedData) -> str:
    """What a person should know about the data: above all, when it is not what was asked for."""
    height, width, channels = data.image_shape
    size = f"{height}×{width}" + (" in colour" if channels > 1 else "")
    text = f"{data.name}: {_counts(data)} images of {size}, {data.classes} classes"
    if run.config.dataset.fallback == data.name != run.config.dataset.name:
        return f"NOT {run.config.dataset.name}, which cannot be had here. Falling back to {text}"
    return text
