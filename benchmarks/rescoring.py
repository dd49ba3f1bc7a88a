"""Measure what it costs the gate that the champion scores the challenger's test images.

    NNBUILD_DATA_DIR=… python benchmarks/rescoring.py [--network convnet] [--images 10000]
        [--repeats 5] [--json]

A champion and two challengers are trained on 6,000 images of MNIST. One challenger has the
champion's test images, so that the gate uses the stored predictions; the other has them in another
order, so that the champion's model scores them. The times are those of the whole comparison, which
reads the digests of the images, the test images, and the model: the first in the process, and the
median of the repetitions. The seconds of all processors together tell the cost on a machine that is
busy with other work.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from nnbuild.config.schema import RunConfig, default_data_dir
from nnbuild.config.sections import GateConfig
from nnbuild.data.sources import load
from nnbuild.evaluation.promotion import Incomparable
from nnbuild.pipeline.comparison import challenger_of, compare
from nnbuild.pipeline.data import load_data
from nnbuild.pipeline.run import open_run, retrain, run_context, train_and_evaluate
from nnbuild.runtime.environment import cache_folder
from nnbuild.store import Store

TRAINING = 6000


def main() -> None:
    """Print the seconds of both comparisons, and their difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="convnet")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.network, arguments.images, arguments.repeats)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name.replace('_', ' '):<28} {value:g}")


def measure(folder: Path, network: str, images: int, repeats: int) -> dict[str, float]:
    """Train the three runs, and return the seconds of the comparisons."""
    mnist = load("mnist", data_dir=default_data_dir(), cache=cache_folder())
    train = {"x_train": mnist.train.images[:TRAINING], "y_train": mnist.train.labels[:TRAINING]}
    test = mnist.test.images[:images], mnist.test.labels[:images]
    paths = {"stored": folder / "stored.npz", "rescored": folder / "rescored.npz"}
    for path, step in zip(paths.values(), (1, -1), strict=True):
        np.savez(path, **train, x_test=test[0][::step], y_test=test[1][::step])
    store = Store(folder / "store")
    standing = retrain(_config(paths["stored"], network, 0), store.root).run_id
    result: dict[str, float] = {"images": len(test[0])}
    for name, path in paths.items():
        run = open_run(_config(path, network, 1), store.root)
        with run_context(run):
            train_and_evaluate(run)
            seconds, processor = [], []
            for _ in range(repeats):
                began = time.perf_counter(), time.process_time()
                found = compare(challenger_of(run, load_data(run)), store, standing, GateConfig())
                seconds.append(time.perf_counter() - began[0])
                processor.append(time.process_time() - began[1])
            if isinstance(found, Incomparable):
                raise SystemExit(found.reason)
            if found.paired.rescored != (len(test[0]) if name == "rescored" else 0):
                raise SystemExit(f"{name}: {found.paired.rescored} images were rescored")
        result[f"{name}_first_seconds"] = round(seconds[0], 3)
        result[f"{name}_median_seconds"] = round(statistics.median(seconds), 3)
        result[f"{name}_processor_seconds"] = round(statistics.median(processor), 3)
    for which in ("first", "median", "processor"):
        extra = result[f"rescored_{which}_seconds"] - result[f"stored_{which}_seconds"]
        result[f"extra_{which}_seconds"] = round(extra, 3)
    return result


def _config(path: Path, network: str, seed: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "dataset": {"name": str(path)},
            "model": {"name": network},
            "training": {"epochs": 1},
            "seed": seed,
        }
    )


if __name__ == "__main__":
    main()
