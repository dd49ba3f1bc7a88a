"""Test accuracy of the named networks over seeds, each run whole and in a process of its own.

    python benchmarks/accuracy.py --data-dir DIR [--networks fast,tiny] [--seeds 10] [--members 5] [--at-once 2] [--together]

The recipes were chosen with the last 10,000 training images held out; the test images are looked at here and nowhere
else. Seeds are 0 to n - 1, and every one counts. Runs that are made at once share the processors, each with as many
threads as there are for it; their seconds are no measure of a run that has them all. `--together` says what the networks
of all seeds reach as one, by the mean of their log-probabilities, as the members of an ensemble do.
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
from nnbuild.runtime.environment import processors

ONE = """
import sys
from nnbuild import RunConfig, retrain
network, members, threads, seed, folder, store = sys.argv[1:]
settings = {
    "dataset": {"name": "mnist", "data_dir": folder},
    "model": {"name": network, "members": int(members)},
    "training": {"threads": int(threads) or None},
    "seed": int(seed),
}
print(retrain(RunConfig.model_validate(settings), store).run_id)
"""


def run(given: argparse.Namespace, network: str, store: str, seed: int) -> dict[str, Any]:
    """The manifest of a run."""
    threads = (
        max(1, processors() // given.at_once) if given.at_once > 1 else 0
    )  # 0: what a run takes by itself
    settings = [network, given.members, threads, seed, given.data_dir, store]
    command = [sys.executable, "-c", ONE, *map(str, settings)]
    run_id = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[
        -1
    ]
    told: dict[str, Any] = json.loads((Path(store) / "runs" / run_id / "manifest.json").read_text())
    print(f"{network} seed {seed}: {told['row']['test_accuracy']:.4f}", file=sys.stderr, flush=True)
    return told


def together(store: str, told: list[dict[str, Any]], data_dir: str) -> float:
    """The accuracy of the mean of the runs' log-probabilities."""
    test = sources.load("mnist", data_dir=Path(data_dir), cache=sources.default_cache()).test
    models = [Path(store) / "runs" / each["run_id"] / "model.onnx" for each in told]
    pooled = np.mean([log_softmax(OnnxEngine(each).logits(test.images)) for each in models], axis=0)
    return float((pooled.argmax(axis=1) == test.labels).mean())


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=os.environ.get("NNBUILD_DATA_DIR"))
    parser.add_argument("--networks", default="fast,tiny,accurate")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--members", type=int, default=1, help="networks of an ensemble")
    parser.add_argument("--at-once", type=int, default=1, help="runs beside each other")
    parser.add_argument(
        "--together", action="store_true", help="the networks of all seeds as one, too"
    )
    given = parser.parse_args()
    if not given.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
    print("| network | weights | seeds | mean | deviation | lowest | seconds of fit, median |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.at_once) as pool:
        for network in given.networks.split(","):
            told = list(
                pool.map(partial(run, given, network, f"{folder}/store"), range(given.seeds))
            )
            found = [each["row"]["test_accuracy"] for each in told]
            weights = told[0]["steps"]["build_model"]["parameters"]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            fit = statistics.median(each["steps"]["fit_model"]["seconds"] for each in told)
            print(
                f"| {network} | {weights:,} | {given.seeds} | {statistics.mean(found):.4%} "
                f"| {spread:.4%} | {min(found):.2%} | {fit:.1f} |",
                flush=True,
            )
            if given.together:
                print(
                    f"{network}, all {given.seeds} as one: {together(f'{folder}/store', told, given.data_dir):.2%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
