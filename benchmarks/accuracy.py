"""Test accuracy of the named networks over seeds, each run in a process of its own, as `nnbuild run` makes it.

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


def run(network: str, seed: int, data_dir: str, store: str) -> dict[str, object]:
    """What a run says of itself, with the number of its weights."""
    command = [str(Path(sys.executable).with_name("nnbuild")), "run", "--model", network, "--seed", str(seed)]
    command += ["--data-dir", data_dir, "--store", store, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    manifest = json.loads(Path(told["manifest"]).read_text())
    return told | {"parameters": manifest["steps"]["build_model"]["parameters"]}


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("NNBUILD_DATA_DIR"))
    parser.add_argument("--networks", default="fast,tiny,accurate")
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    if not given.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
    print("| network | weights | seeds | mean | deviation | lowest | seconds of fit, median | of the run |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for network in given.networks.split(","):
            told = []
            for seed in range(given.seeds):
                told.append(run(network, seed, given.data_dir, f"{folder}/store"))
                print(f"{network} seed {seed}: {told[-1]['test_accuracy']:.4f}", file=sys.stderr, flush=True)
            found = [each["test_accuracy"] for each in told]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            fit, whole = (statistics.median(each["seconds"][name] for each in told) for name in ("fit", "whole"))
            print(
                f"| {network} | {told[0]['parameters']:,} | {given.seeds} | {statistics.mean(found):.4%} "
                f"| {spread:.4%} | {min(found):.2%} | {fit:.1f} | {whole:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
