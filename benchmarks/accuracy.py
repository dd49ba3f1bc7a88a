"""Measure the test accuracy of the built-in networks over several seeds.

    python benchmarks/accuracy.py --data-dir DIR [--networks fast,tiny] [--seeds 10]
                                  [--ensemble-size 5] [--max-parallel 2] [--together]

Each run is a complete retraining in its own process. The recipes were chosen with the last 10,000
training images held out; only this program evaluates on the test images. Seeds are 0 to n - 1, and
every seed counts. Parallel runs split the processors evenly, so their seconds cannot be compared
with those of a run that has all processors. `--together` also prints the accuracy of the networks
of all seeds as one ensemble, which averages log-probabilities as the members of a trained ensemble
do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild.data import sources
from nnbuild.engines.onnx import OnnxEngine
from nnbuild.logits.softmax import log_softmax
from nnbuild.runtime.environment import cache_folder, processors

RETRAIN = """
import sys
from nnbuild import RunConfig, retrain
network, members, threads, seed, folder, store = sys.argv[1:]
settings = {
    "dataset": {"name": "mnist", "data_dir": folder},
    "model": {"name": network, "ensemble_size": int(members)},
    "training": {"threads": int(threads) or None},
    "seed": int(seed),
}
print(retrain(RunConfig.model_validate(settings), store).run_id)
"""


def train(options: argparse.Namespace, network: str, store: str, seed: int) -> dict[str, Any]:
    """Train a network in its own process, and return the manifest of the run."""
    parallel = options.max_parallel
    threads = max(1, processors() // parallel) if parallel > 1 else 0  # 0: the default of a run
    arguments = [network, options.ensemble_size, threads, seed, options.data_dir, store]
    command = [sys.executable, "-c", RETRAIN, *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    path = Path(store) / "runs" / output.split()[-1] / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    accuracy = manifest["row"]["test_accuracy"]
    print(f"{network} seed {seed}: {accuracy:.4f}", file=sys.stderr, flush=True)
    return manifest


def ensemble_accuracy(store: str, manifests: list[dict[str, Any]], data_dir: str) -> float:
    """Return the test accuracy of the mean of the runs' log-probabilities."""
    test = sources.load("mnist", data_dir=Path(data_dir), cache=cache_folder()).test
    models = [Path(store) / "runs" / each["run_id"] / "model.onnx" for each in manifests]
    pooled = np.mean([log_softmax(OnnxEngine(each).logits(test.images)) for each in models], axis=0)
    return float((pooled.argmax(axis=1) == test.labels).mean())


def main() -> None:
    """Print one row per network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir", default=os.environ.get("NNBUILD_DATA_DIR"), help="folder with MNIST"
    )
    parser.add_argument(
        "--networks", default="fast,tiny,accurate", help="names, separated by commas"
    )
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds per network")
    parser.add_argument(
        "--ensemble-size", type=int, default=1, help="number of networks per ensemble"
    )
    parser.add_argument("--max-parallel", type=int, default=1, help="number of parallel runs")
    parser.add_argument(
        "--together",
        action="store_true",
        help="also evaluate the networks of all seeds as one ensemble",
    )
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("no folder with MNIST: use --data-dir, or set NNBUILD_DATA_DIR")
    print(
        "| network | weights | seeds | mean | standard deviation | lowest | median seconds of fit |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.max_parallel) as pool:
        store = f"{folder}/store"
        for network in options.networks.split(","):
            runs = list(pool.map(partial(train, options, network, store), range(options.seeds)))
            accuracies = [each["row"]["test_accuracy"] for each in runs]
            weights = runs[0]["steps"]["build_model"]["parameters"]
            deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            fit = statistics.median(each["steps"]["fit_model"]["seconds"] for each in runs)
            print(
                f"| {network} | {weights:,} | {options.seeds} | {statistics.mean(accuracies):.4%} "
                f"| {deviation:.4%} | {min(accuracies):.2%} | {fit:.1f} |",
                flush=True,
            )
            if options.together:
                accuracy = ensemble_accuracy(store, runs, options.data_dir)
                print(
                    f"{network}, all {options.seeds} seeds as an ensemble: {accuracy:.2%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
