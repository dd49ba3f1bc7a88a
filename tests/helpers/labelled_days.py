"""Write labelled images by the day, as a source that grows would have them."""

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from data_files import separable, write_pictures

from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import decide_and_commit, open_run, run_context, train_and_evaluate
from nnbuild.store.step_results import Committed

FIRST = date(2026, 10, 1)


def day(number: int) -> date:
    """Return a day by its number, from 0."""
    return FIRST + timedelta(days=number)


def noon(number: int, hour: int = 12) -> datetime:
    """Return a time on a day."""
    return datetime(2026, 10, 1, hour, tzinfo=UTC) + timedelta(days=number)


class LabelledDays:
    """A folder of pictures for each day.

    Attributes:
        pattern: Its path with `{date}`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pattern = f"{root}/labelled/date={{date}}/"

    def folder(self, number: int) -> Path:
        return self.root / "labelled" / f"date={day(number)}"

    def write(self, number, rows=40, *, seed=None, shape=(8, 8, 1), names=None) -> None:
        """Write a day, or replace what it has."""
        seed = number if seed is None else seed
        arrays = separable(seed=seed, train=rows, test=0, shape=shape, classes=4)
        shutil.rmtree(self.folder(number), ignore_errors=True)
        write_pictures(self.folder(number), arrays.train_images, arrays.train_labels, names)

    def remove(self, number: int, *, missing_ok: bool = False) -> None:
        shutil.rmtree(self.folder(number), ignore_errors=missing_ok)

    def config(self, **dataset: object) -> RunConfig:
        """Return settings of a run that takes a second."""
        settings = {
            "dataset": {"name": self.pattern, **dataset},
            "model": {"name": "lab"},
            "training": {"epochs": 1, "batch_size": 16, "threads": 2, "validation_fraction": 0.2},
            "seed": 3,
        }
        return RunConfig.model_validate(settings)


def train(config: RunConfig, root: Path, now: datetime) -> Committed:
    """Run the whole pipeline at a time."""
    run = open_run(config, root, now=now)
    with run_context(run):
        train_and_evaluate(run)
        return decide_and_commit(run)


def weights(store, run_id: str) -> str:
    """Return the digest of the weights of a run."""
    return store.manifest(run_id).files[f"runs/{run_id}/model.keras"].sha256


def image_keys(images: np.ndarray) -> list[bytes]:
    """Return the bytes of each image."""
    return [image.tobytes() for image in images]
