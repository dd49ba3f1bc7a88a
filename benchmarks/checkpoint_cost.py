"""What the checkpoints of a fit cost: the convnet with one at every epoch, and without.

    python benchmarks/checkpoint_cost.py [--pairs 3] [--epochs 2] [--examples 60000]

The images are of MNIST's size and drawn at random, since only time is measured. Each pair is fitted one after the
other in this process, in alternating order; the ratio is that of the epochs' seconds, checkpoints included.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from nnbuild import models
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.data.dataset import Split
from nnbuild.runtime.tensorflow import pin_threads
from nnbuild.training import Checkpoints, FitContext, fit


def seconds(split: Split, config: RunConfig, folder: Path | None) -> float:
    """Of a fit, after its first compiled step."""
    model = models.build(config, (28, 28, 1), 10)
    models.compile_model(model, config.training, steps=1000)
    began: list[float] = []

    class Watch:
        def step(self, *_: object) -> None:
            if not began:
                began.append(time.perf_counter())

        def epoch(self, *_: object) -> None: ...

    fit(
        model,
        split,
        config,
        10,
        FitContext(progress=Watch(), checkpoints=Checkpoints(folder, {}) if folder else None),
    )
    return time.perf_counter() - began[0]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--examples", type=int, default=60_000)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (given.examples, 28, 28, 1), np.uint8)
    split = Split(images, random.integers(0, 10, given.examples).astype(np.int16))
    settings = {"model": {"name": "convnet"}, "training": {"epochs": given.epochs}}
    config = resolve(RunConfig.model_validate(settings))
    pin_threads(config.training.threads)
    ratios = []
    for pair in range(given.pairs):
        with tempfile.TemporaryDirectory() as folder:
            order = (Path(folder), None) if pair % 2 else (None, Path(folder))
            found = {place is not None: seconds(split, config, place) for place in order}
        ratios.append(found[True] / found[False])
        print(
            f"pair {pair + 1}: with checkpoints {found[True]:.2f} s, without {found[False]:.2f} s, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"median of {given.pairs} pairs: {statistics.median(ratios):.3f} (goal: at most 1.05)")


if __name__ == "__main__":
    main()
