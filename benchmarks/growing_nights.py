"""Retrain on data that grow every night, and measure what the champion gate makes of it.

    NNBUILD_DATA_DIR=… python benchmarks/growing_nights.py [--nights 30] [--first 5000]
        [--more 1000] [--network fast] [--epochs 2] [--ensemble 1] [--margin 0.005] [--json]

Every night MNIST's training images grow, in one file without a test split: nnbuild holds out a
sixth of them by hash, trains, and the gate decides. Each run is then measured on MNIST's 10,000
test images, which no run ever sees. The program also checks by its own digests (SHA-256 of the
pixels in the Parquet files of the store) that no compared image is in the training data of either
run, and that an image that was held out once stays held out.

The columns: images of the night; test images compared, rescored by the champion and left out;
accuracy of the run and of the champion at the end of the night on the 10,000 images; the best run
so far; how far the champion is below it, in standard errors of an accuracy of 10,000 images.
"""

import argparse
import hashlib
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nnbuild.config.schema import RunConfig, default_data_dir
from nnbuild.data.dataset import Split
from nnbuild.data.sources import load
from nnbuild.engines import OnnxEngine
from nnbuild.pipeline.run import retrain
from nnbuild.runtime.environment import cache_folder
from nnbuild.store import Store, champion

BATCH = 2048


def main() -> None:
    """Run the nights, and print a table of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--first", type=int, default=5000, help="images of the first night")
    parser.add_argument("--more", type=int, default=1000, help="images added every night")
    parser.add_argument("--network", default="fast")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--ensemble", type=int, default=1)
    parser.add_argument("--margin", type=float, default=0.005)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        nights = Nights(Path(folder), arguments)
        for number in range(1, arguments.nights + 1):
            rows.append(nights.run(number))
            _print(rows[-1], as_json=arguments.json, heading=number == 1)
    print(json.dumps({"summary": summary(rows)}) if arguments.json else summary_text(rows))


class Nights:
    """The nights of one store.

    Args:
        folder: Folder for the store and the data.
        arguments: Options of the command line.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        mnist = load("mnist", data_dir=default_data_dir(), cache=cache_folder())
        order = np.random.default_rng(0).permutation(len(mnist.train))
        self._images, self._labels = mnist.train.images[order], mnist.train.labels[order]
        self._unseen = mnist.test
        self._data, self._store = folder / "growing.npz", Store(folder / "store")
        self._arguments = arguments
        self._accuracy: dict[str, float] = {}
        self._held_out: set[bytes] = set()

    def run(self, number: int) -> dict[str, Any]:
        """Retrain on the data of a night, and return its row of the table."""
        options = self._arguments
        count = min(options.first + (number - 1) * options.more, len(self._images))
        np.savez(self._data, x_train=self._images[:count], y_train=self._labels[:count])
        before = champion.current(self._store) if self._store.exists() else None
        began = time.perf_counter()
        run_id = retrain(self._config(), self._store.root).run_id
        seconds = time.perf_counter() - began
        self._accuracy[run_id] = accuracy(self._store, run_id, self._unseen)
        (decision,) = self._store.read_table("decisions", run_id).to_pylist()
        present = champion.current(self._store)
        standing = 0.0 if present is None else self._accuracy[present]
        best = max(self._accuracy.values())
        return {
            "night": number,
            "images": count,
            "compared": decision["examples"] or 0,
            "rescored": decision["rescored"] or 0,
            "left_out": decision["left_out"] or 0,
            "outcome": decision["outcome"],
            "run": self._accuracy[run_id],
            "champion": standing,
            "best": best,
            "errors_below": (best - standing) / math.sqrt(best * (1 - best) / len(self._unseen)),
            "seconds": seconds,
            **self._check(run_id, before, decision),
        }

    def _config(self) -> RunConfig:
        options = self._arguments
        return RunConfig.model_validate(
            {
                "dataset": {"name": str(self._data)},
                "model": {"name": options.network, "ensemble_size": options.ensemble},
                "training": {"epochs": options.epochs},
                "gate": {"margin": options.margin},
                "seed": 0,
            }
        )

    def _check(self, run_id: str, before: str | None, decision: dict[str, Any]) -> dict[str, int]:
        """Check by digests of its own what the run was trained and compared on."""
        test = self._digests(run_id, "test")
        trained = self._digests(run_id, "train")
        if before is not None:
            trained |= self._digests(before, "train")
        released = len(self._held_out & trained)
        self._held_out |= test
        seen = len(test & trained)
        # The images that the gate did not leave out, but one of the two was trained on.
        leaked = seen - (decision["left_out"] or 0) if decision["examples"] else 0
        return {"compared_and_trained": leaked, "held_out_and_trained": released}

    def _digests(self, run_id: str, split: str) -> set[bytes]:
        data = self._store.manifest(run_id).steps.load_data
        path = self._store.dataset_folder(data.name, data.digest) / f"{split}.parquet"
        pixels = pq.read_table(path)["image"].to_pylist()
        return {hashlib.sha256(each).digest() for each in pixels}


def accuracy(store: Store, run_id: str, split: Split) -> float:
    """Return the accuracy of a run's model."""
    engine = OnnxEngine(store.root / "runs" / run_id / "model.onnx")
    predicted: list[NDArray[np.int64]] = [
        engine.logits(split.images[start : start + BATCH]).argmax(axis=1)
        for start in range(0, len(split), BATCH)
    ]
    return float((np.concatenate(predicted) == split.labels).mean())


def _print(row: dict[str, Any], *, as_json: bool, heading: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    if heading:
        names = ("night", "images", "compared", "rescored", "left out", "outcome", "this run")
        names += ("champion", "best so far", "standard errors below")
        print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    print(
        f"| {row['night']} | {row['images']:,} | {row['compared']:,} | {row['rescored']:,} | "
        f"{row['left_out']} | {row['outcome']} | {row['run']:.4f} | {row['champion']:.4f} | "
        f"{row['best']:.4f} | {row['errors_below']:.2f} |",
        flush=True,
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the nights."""
    return {
        "nights": len(rows),
        "promotions_after_the_first": sum(row["outcome"] == "promoted" for row in rows[1:]),
        "largest_errors_below": max(row["errors_below"] for row in rows),
        "nights_more_than_one_error_below": sum(row["errors_below"] > 1 for row in rows),
        "first_champion": rows[0]["champion"],
        "last_champion": rows[-1]["champion"],
        "best": rows[-1]["best"],
        "compared_and_trained": sum(row["compared_and_trained"] for row in rows),
        "held_out_and_trained": sum(row["held_out_and_trained"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
    }


def summary_text(rows: list[dict[str, Any]]) -> str:
    """Return the summary as lines of text."""
    lines = (f"{name.replace('_', ' ')}: {value}" for name, value in summary(rows).items())
    return "\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
