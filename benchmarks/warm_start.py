"""Compare fits that start from the champion's weights with fits from random ones, as data grow.

    python benchmarks/warm_start.py [--nights 8] [--first 5000] [--more 1000] [--model convnet]
        [--epochs 1,3] [--seeds 1] [--json]

Each night the images of one more day are added, and every variant trains on all days so far. Its
run becomes the champion of its own store, whatever the gate would say, so that the next night can
start from it. The accuracy is that on the 10,000 test images of MNIST, which no run ever sees.
"""

import argparse
import json
import statistics
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild.config.schema import RunConfig, default_data_dir
from nnbuild.data import sources
from nnbuild.data.dataset import Split
from nnbuild.engines import OnnxEngine
from nnbuild.pipeline.run import decide_and_commit, open_run, run_context, train_and_evaluate
from nnbuild.runtime.environment import cache_folder
from nnbuild.store import Store, champion
from nnbuild.store.step_results import FittedModel

FIRST = date(2026, 3, 1)


def write(folder: Path, train: Split, night: int, first: int, more: int) -> None:
    """Write the images of a day."""
    begin = 0 if night == 0 else first + (night - 1) * more
    rows = slice(begin, begin + (first if night == 0 else more))
    path = folder / f"{FIRST + timedelta(days=night)}.npz"
    np.savez(path, images=train.images[rows, ..., 0], labels=train.labels[rows])


def accuracy(store: Store, run_id: str, test: Split) -> float:
    """Return the accuracy of a run on the images of MNIST's test split."""
    engine = OnnxEngine((store.root / "runs" / run_id / "model.onnx").read_bytes(), None)
    batches = range(0, len(test), 2048)
    logits = [engine.logits(test.images[first : first + 2048]) for first in batches]
    return float(np.mean(np.concatenate(logits).argmax(axis=1) == test.labels))


def retrain(config: RunConfig, store: Store, night: int) -> tuple[str, float]:
    """Train on the days so far; return the ID of the run and the seconds of its fit."""
    now = datetime(2026, 3, 1, 23, tzinfo=UTC) + timedelta(days=night)
    run = open_run(config, store.root, now=now)
    with run_context(run):
        train_and_evaluate(run)
        run_id = decide_and_commit(run).run_id
    author = champion.Author(who="benchmark", note=None)
    champion.promote(store, run_id, author, now=now)
    return run_id, store.manifest(run_id).seconds[FittedModel.step]


def measure(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Let the nights pass for every variant; return a row for each variant and night."""
    mnist = sources.load("mnist", data_dir=default_data_dir(), cache=cache_folder())
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for night in range(options.nights):
            write(folder, mnist.train, night, options.first, options.more)
            for epochs in options.epochs:
                for start in (None, "champion"):
                    store = Store(folder / f"store-{epochs}-{start}")
                    config = RunConfig.model_validate(
                        {
                            "dataset": {"name": f"{folder}/{{date}}.npz"},
                            "model": {"name": options.model},
                            "training": {"epochs": epochs, "start": start},
                            "seed": seed,
                        }
                    )
                    run_id, seconds = retrain(config, store, night)
                    row = {
                        "seed": seed,
                        "night": night,
                        "images": options.first + night * options.more,
                        "start": start or "random",
                        "epochs": epochs,
                        "accuracy": accuracy(store, run_id, mnist.test),
                        "fit_seconds": seconds,
                    }
                    rows.append(row)
                    print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean accuracy and fit time of each variant, without the first night."""
    variants = sorted({(row["epochs"], row["start"]) for row in rows})
    result = []
    for epochs, start in variants:
        later = [
            row
            for row in rows
            if (row["epochs"], row["start"]) == (epochs, start) and row["night"] > 0
        ]
        last = [row for row in later if row["night"] == max(row["night"] for row in later)]
        result.append(
            {
                "epochs": epochs,
                "start": start,
                "mean accuracy": round(statistics.mean(row["accuracy"] for row in later), 4),
                "accuracy of the last night": round(
                    statistics.mean(row["accuracy"] for row in last), 4
                ),
                "fit seconds": round(statistics.mean(row["fit_seconds"] for row in later), 2),
            }
        )
    return result


def main() -> None:
    """Parse the options, measure, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=8)
    parser.add_argument("--first", type=int, default=5000)
    parser.add_argument("--more", type=int, default=1000)
    parser.add_argument("--model", default="convnet")
    parser.add_argument(
        "--epochs", type=lambda text: [int(each) for each in text.split(",")], default=[1, 3]
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for seed in range(options.seeds) for row in measure(options, seed)]
    for each in summary(rows):
        print("  ".join(f"{key}: {value}" for key, value in each.items()))
    if options.json:
        print(json.dumps({"rows": rows, "summary": summary(rows)}))


if __name__ == "__main__":
    main()
