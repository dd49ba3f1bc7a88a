"""Measure the cost of counting for drift: scoring jobs with and without the counts, in turn.

    python benchmarks/drift_cost.py --data-dir DIR [--rows 600000] [--pairs 7]

The ratios are those of processor seconds, which depend less than elapsed seconds on what else the
machine does.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scoring import write_input

import nnbuild
from nnbuild.scoring import batch as scoring_batch


def time_job(source: Path, root: Path, *, with_counts: bool) -> float:
    """Return the processor seconds of one scoring job.

    Args:
        source: Parquet file to score.
        root: Root of the store.
        with_counts: Whether every batch is counted; if not, the counts of the first batch are
            returned for all of them.
    """
    real = scoring_batch.counted
    if not with_counts:
        first: list[object] = []

        def once(*arguments: Any) -> object:
            first.extend([] if first else [real(*arguments)])
            return first[0]

        scoring_batch.counted = once
    try:
        start_time = time.process_time()
        nnbuild.score(nnbuild.ScoreConfig(input=str(source)), root)
        return time.process_time() - start_time
    finally:
        scoring_batch.counted = real


def main() -> None:
    """Print the ratio of each pair, and the median."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's IDX files",
    )
    parser.add_argument("--rows", type=int, default=600_000, help="rows per job")
    parser.add_argument("--pairs", type=int, default=7, help="number of pairs of jobs")
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("no folder with MNIST: use --data-dir, or set NNBUILD_DATA_DIR")
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
        time_job(source, folder / "store", with_counts=True)  # the first job also warms the caches
        ratios = []
        for number in range(1, options.pairs + 1):
            counted, uncounted = (
                time_job(source, folder / "store", with_counts=each) for each in (True, False)
            )
            ratios.append(counted / uncounted)
            print(
                f"pair {number}: {counted:.2f} s with counts, {uncounted:.2f} s without, "
                f"ratio {ratios[-1]:.3f}",
                flush=True,
            )
        print(
            f"{options.rows:,} rows, with counts / without, "
            f"median of {options.pairs} pairs: {statistics.median(ratios):.3f}"
        )


if __name__ == "__main__":
    main()
