"""Measure what a shadow costs: one job with a shadow, and a second job instead.

    python benchmarks/shadow_cost.py [--rows 100000] [--pictures 20000] [--rounds 5]

Two runs of `lab` are trained on digits of scikit-learn, then the same digits, repeated, are scored
from one Parquet file and from a folder of PNG files. Times are those of `nnbuild.score`; ratios are
to the job without a shadow in the same round; the table has the medians over the rounds.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nnbuild.config.schema import RunConfig
from nnbuild.data.sources import load
from nnbuild.pipeline.run import retrain
from nnbuild.runtime.environment import cache_folder
from nnbuild.scoring import ScoreConfig, score


def train(root: Path) -> tuple[str, str]:
    """Train two runs on digits."""
    runs = []
    for seed in (1, 2):
        config = RunConfig.model_validate(
            {
                "dataset": {"name": "digits"},
                "model": {"name": "lab"},
                "training": {"epochs": 2},
                "seed": seed,
                "gate": {"enabled": seed == 1},
            }
        )
        runs.append(retrain(config, root).run_id)
    return runs[0], runs[1]


def write_inputs(folder: Path, rows: int, pictures: int) -> dict[str, Path]:
    """Write images to a Parquet file and to a folder of PNG files."""
    images = load("digits", data_dir=None, cache=cache_folder()).test.images
    repeated = images[np.arange(rows) % len(images)]
    table = pa.table({"image": pa.array([each.tobytes() for each in repeated], pa.binary(784))})
    pq.write_table(table, folder / "images.parquet", row_group_size=16_384)
    (folder / "pictures").mkdir()
    for number in range(pictures):
        picture = Image.fromarray(images[number % len(images), ..., 0])
        picture.save(folder / "pictures" / f"{number:06d}.png")
    return {"Parquet": folder / "images.parquet", "PNG": folder / "pictures"}


def seconds(root: Path, path: Path, **settings: str | None) -> float:
    """Return the seconds of a job."""
    began = time.perf_counter()
    score(ScoreConfig.model_validate({"input": str(path), **settings}), root)
    return time.perf_counter() - began


def main() -> None:
    """Print a table of times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), Path(name) / "store"
        first, other = train(root)
        inputs = write_inputs(folder, options.rows, options.pictures)
        print("| input | model alone | with a shadow | a second job instead |")
        print("| --- | --- | --- | --- |")
        for kind, path in inputs.items():
            rounds = []
            for _ in range(options.rounds):  # in turn, since the machine may become slower
                alone = seconds(root, path, model=first)
                both = seconds(root, path, model=first, shadow=other)
                second = alone + seconds(root, path, model=other)
                rounds.append((alone, both / alone, second / alone))
            alone, both, second = np.median(rounds, axis=0)
            print(f"| {kind} | {alone:.2f} s | {both:.2f} times | {second:.2f} times |", flush=True)


if __name__ == "__main__":
    main()
