"""Measure the cost of checkpoints: `convnet` with a checkpoint at every epoch, and without.

    python benchmarks/checkpoint_cost.py [--pairs 3] [--epochs 2] [--examples 60000]

The images have the size of MNIST's and are random, since only time is measured. The two fits of a
pair run one after the other in this process, in alternating order. A fit is timed from its first
compiled step on, checkpoints included.
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


def time_fit(split: Split, config: RunConfig, folder: Path | None) -> float:
    """Return the seconds of a fit after its first compiled step.

    Args:
        split: Images and labels to train on.
        config: Resolved configuration of the run.
        folder: Folder for the checkpoints, or None to write none.
    """
    model = models.build(config, (28, 28, 1), 10)
    models.compile_model(model, config.training, steps=1000)
    start_times: list[float] = []

    class Watch:
        def step(self, *_: object) -> None:
            if not start_times:
                start_times.append(time.perf_counter())

        def epoch(self, *_: object) -> None: ...

    fit(
        model,
        split,
        config,
        10,
        FitContext(progress=Watch(), checkpoints=Checkpoints(folder, {}) if folder else None),
    )
    return time.perf_counter() - start_times[0]


def main() -> None:
    """Print the ratio of each pair, and the median."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3, help="number of pairs of fits")
    parser.add_argument("--epochs", type=int, default=2, help="epochs per fit")
    parser.add_argument("--examples", type=int, default=60_000, help="number of images")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (options.examples, 28, 28, 1), np.uint8)
    split = Split(images, random.integers(0, 10, options.examples).astype(np.int16))
    settings = {"model": {"name": "convnet"}, "training": {"epochs": options.epochs}}
    config = resolve(RunConfig.model_validate(settings))
    pin_threads(config.training.threads)
    ratios = []
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as folder:
            order = (Path(folder), None) if pair % 2 else (None, Path(folder))
            seconds = {path is not None: time_fit(split, config, path) for path in order}
        ratios.append(seconds[True] / seconds[False])
        print(
            f"pair {pair + 1}: with checkpoints {seconds[True]:.2f} s, "
            f"without {seconds[False]:.2f} s, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    median = statistics.median(ratios)
    print(f"median of {options.pairs} pairs: {median:.3f} (goal: at most 1.05)")


if __name__ == "__main__":
    main()
