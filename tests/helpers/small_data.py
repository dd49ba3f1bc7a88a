"""Tiny learnable datasets: each class is a pattern with noise."""

from pathlib import Path

import numpy as np

from nnbuild.config.schema import RunConfig


def small_arrays(
    *, classes: int, shape: tuple[int, int, int], train: int, test: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return uint8 images and labels under the keys of Keras's mnist.npz."""
    random = np.random.default_rng(seed)
    patterns = random.integers(40, 216, (classes, *shape))
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        noise = random.integers(-39, 40, (count, *shape))
        arrays[f"x_{split}"] = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
        arrays[f"y_{split}"] = labels.astype(np.uint8)
    return arrays


def write_small_dataset(
    folder: Path, *, classes: int, shape: tuple[int, int, int], train: int, test: int
) -> Path:
    """Write `small_arrays` as an .npz, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.npz"
    np.savez(path, **small_arrays(classes=classes, shape=shape, train=train, test=test))
    return path


def run_config(path: Path, **changed: object) -> RunConfig:
    """Return settings for one epoch of the lab network on a dataset, with changes."""
    settings = {
        "dataset": {"name": str(path)},
        "model": {"name": "lab"},
        "training": {"epochs": 1},
        "seed": 1,
    }
    return RunConfig.model_validate({**settings, **changed})
