"""What the counts for drift cost: jobs with and without them in turn, and the ratio of the processor's seconds.

python benchmarks/drift_cost.py --rows 600000 --pairs 7
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from scoring import write_input

import nnbuild
from nnbuild.scoring import shards


def seconds(source: Path, root: Path, *, with_counts: bool) -> float:
    """Of the processors, for one job; what else the machine does counts less than in the seconds of a clock."""
    real = shards.counted
    if not with_counts:
        first: list[object] = []

        def once(read: object, table: object, classes: int) -> object:
            first.extend([] if first else [real(read, table, classes)])
            return first[0]

        shards.counted = once
    try:
        began = time.process_time()
        nnbuild.score(nnbuild.ScoreConfig(input=str(source)), root)
        return time.process_time() - began
    finally:
        shards.counted = real


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's IDX files",
    )
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            "dataset": {"data_dir": options.data_dir},
            "model": {"name": "lab"},
            "training": {"epochs": 1},
        }
        nnbuild.retrain(nnbuild.RunConfig.model_validate(settings), folder / "store")
        source = folder / "input.parquet"
        write_input(source, options.data_dir, options.rows)
        seconds(source, folder / "store", with_counts=True)
        ratios = []
        for number in range(1, options.pairs + 1):
            turns = [seconds(source, folder / "store", with_counts=each) for each in (True, False)]
            ratios.append(turns[0] / turns[1])
            print(
                f"pair {number}: {turns[0]:.2f} s with, {turns[1]:.2f} s without, {ratios[-1]:.3f} times",
                flush=True,
            )
        print(
            f"{options.rows:,} rows, with the counts / without, median of {options.pairs} pairs: {statistics.median(ratios):.3f}"
        )


if __name__ == "__main__":
    main()
