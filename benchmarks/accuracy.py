"""Test accuracy of the named networks over seeds, each run whole and in a process of its own.

    python benchmarks/accuracy.py --data-dir DIR [--networks fast,tiny] [--seeds 10]

The recipes were chosen with the last 10,000 training images held out; the test images are looked at here and nowhere
else. Seeds are 0 to n - 1, and every one counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ONE = """
import sys
from nnbuild import RunConfig, retrain
network, seed, folder, store = sys.argv[1:]
dataset = {"name": "mnist", "data_dir": folder}
config = RunConfig.model_validate({"dataset": dataset, "model": {"name": network}, "seed": int(seed)})
print(retrain(config, store).run_id)
"""


def run(network: str, seed: int, data_dir: str, store: str) -> dict[str, Any]:
    """The manifest of a run."""
    command = [sys.executable, "-c", ONE, network, str(seed), data_dir, store]
    run_id = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    return json.loads((Path(store) / "runs" / run_id / "manifest.json").read_text())


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("NNBUILD_DATA_DIR"))
    parser.add_argument("--networks", default="fast,tiny,accurate")
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    if not given.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
    print("| network | weights | seeds | mean | deviation | lowest | seconds of fit, median |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for network in given.networks.split(","):
            told = []
            for seed in range(given.seeds):
                told.append(run(network, seed, given.data_dir, f"{folder}/store"))
                print(f"{network} seed {seed}: {told[-1]['row']['test_accuracy']:.4f}", file=sys.stderr, flush=True)
            found = [each["row"]["test_accuracy"] for each in told]
            weights = told[0]["steps"]["build_model"]["parameters"]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            fit = statistics.median(each["steps"]["fit_model"]["seconds"] for each in told)
            print(
                f"| {network} | {weights:,} | {given.seeds} | {statistics.mean(found):.4%} "
                f"| {spread:.4%} | {min(found):.2%} | {fit:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
