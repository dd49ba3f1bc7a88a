"""Follow 30 days of scored MNIST whose labels arrive late, and compare with pandas.

    python benchmarks/live_labels.py [--days 30] [--images 1000] [--kills 5]

Every day images are scored, and a file of labels arrives: 1 to 14 days late, out of order, a tenth
of them repeated, 2 % wrong at first and corrected, some corrections before the label that they
correct. Some of the commands are killed by SIGKILL, at another point each time, and repeated. At
the end the table `live` must equal a computation in pandas from the files, row by row.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.config.schema import RunConfig
from nnbuild.data.dataset import Split
from nnbuild.data.dataset_reader import read_dataset
from nnbuild.data.split_table import split_table
from nnbuild.evaluation import calibration_error, wilson_interval
from nnbuild.live import LabelConfig, ingest, measure, write
from nnbuild.logits import softmax
from nnbuild.pipeline.run import retrain
from nnbuild.scoring import ScoreConfig, score
from nnbuild.store import Store

_FIRST = date(2026, 8, 1)
_MIDNIGHT = datetime(_FIRST.year, _FIRST.month, _FIRST.day, tzinfo=UTC)
_LATEST = 14
_POINTS = ("label:staged", "label:ready", "label:quarantine", "label:labels", "label:label_jobs")


def label_events(draw: np.random.Generator, ids: np.ndarray, truth: np.ndarray) -> pd.DataFrame:
    """Return the labels of one day's images: ID, label, when observed, and days until arrival."""
    count = len(ids)
    delay = draw.integers(1, _LATEST + 1, count)
    wrong = draw.random(count) < 0.02
    first = pd.DataFrame(
        {"id": ids, "label": np.where(wrong, (truth + 1) % 10, truth), "hours": 0, "delay": delay}
    )
    corrected = first[wrong].assign(
        label=truth[wrong], hours=24, delay=draw.integers(1, _LATEST + 1, wrong.sum())
    )
    repeated = first[draw.random(count) < 0.1]
    repeated = repeated.assign(delay=draw.integers(1, _LATEST + 1, len(repeated)))
    return pd.concat([first, corrected, repeated], ignore_index=True)


def kill_while_adding(address: str, root: str, point: str) -> None:
    """Run `nnbuild label`, which kills itself by SIGKILL at a point."""
    command = [sys.executable, "-m", "flows.cli.main", "label", "--input", address]
    done = subprocess.run(
        [*command, "--store", root],
        env=os.environ | {"NNBUILD_FAULT": point},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != -signal.SIGKILL:
        sys.exit(f"{' '.join(command)} was not killed at {point}")


def recomputed(store: Store, files: list[Path], run_id: str) -> pd.DataFrame:
    """Return live accuracy by day from the files of labels and the scored rows."""
    temperature = store.manifest(run_id).steps.calibrate_model.temperature  # type: ignore[union-attr]
    labels = pd.concat([pd.read_parquet(path).assign(file=path.name) for path in files])
    labels = labels.sort_values(["observed_at", "file"], kind="stable")
    newest = labels.groupby("id").label.last()
    jobs = store.read_table("score_jobs").to_pandas()[["score_id", "day"]]
    scores = store.read_table("scores").to_pandas().merge(jobs)
    scores["truth"] = scores.example_id.map(newest)
    rows = []
    for day, group in scores.groupby("day"):
        with np.errstate(divide="ignore"):
            logs = np.log(group.filter(regex="^prob_").to_numpy(np.float64))
        probabilities = softmax(np.maximum(logs, np.log(1e-45)) / temperature)
        known = group.truth.notna().to_numpy()
        truth = group.truth[known].to_numpy().astype(int)
        accuracy = float((group.predicted[known].to_numpy() == truth).mean())
        low, high = wilson_interval(accuracy, int(known.sum()))
        rows.append(
            {
                "start": day,
                "rows": len(group),
                "labelled": int(known.sum()),
                "accuracy": accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
                "expected_calibration_error": calibration_error(probabilities[known], truth),
                "estimated_accuracy": float(probabilities.max(axis=1).mean()),
            }
        )
    return pd.DataFrame(rows)


def score_days(store: Store, test: Split, folder: Path, days: int, images: int) -> pd.DataFrame:
    """Score images of each day; return all labels, with the days of scoring and of arrival."""
    draw = np.random.default_rng(0)
    events = []
    for day in range(days):
        chosen = draw.choice(len(test), images, replace=False)
        ids = np.arange(images) + day * 1_000_000
        table = split_table(Split(test.images[chosen], test.labels[chosen]))
        path = folder / f"images-{day:02d}.parquet"
        pq.write_table(table.append_column("id", pa.array(ids)), path)
        when = _FIRST + timedelta(days=day)
        score(ScoreConfig(input=str(path), id_column="id", day=when), store.root)
        events.append(label_events(draw, ids, test.labels[chosen]).assign(day=day))
    every = pd.concat(events)
    every["observed_at"] = _MIDNIGHT + pd.to_timedelta(every.day * 24 + every.hours, "h")
    every["arrival"] = every.day + every.delay
    return every


def deliver(store: Store, every: pd.DataFrame, folder: Path, kills: int) -> list[Path]:
    """Add the labels in the order of their arrival; return the files."""
    arrivals = sorted(every.arrival.unique())
    chosen = np.linspace(2, len(arrivals) - 2, kills).astype(int)
    killing = {arrivals[place]: point for place, point in zip(chosen, _POINTS, strict=False)}
    files = []
    for arrival, group in every.groupby("arrival"):
        shuffled = group.sample(frac=1, random_state=int(arrival))[["id", "label", "observed_at"]]
        unknown = pd.DataFrame({"id": [-1], "label": [0], "observed_at": [_MIDNIGHT]})
        files.append(folder / f"labels-{arrival:02d}.parquet")
        pd.concat([shuffled, unknown]).to_parquet(files[-1], index=False)
        address = str(folder / "labels-*.parquet")
        if arrival in killing:
            kill_while_adding(address, str(store.root), killing[arrival])
        ingest(LabelConfig(input=address), store.root)
    return files


def main() -> None:
    """Simulate the days, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--images", type=int, default=1000, help="scored each day")
    parser.add_argument("--kills", type=int, default=5, choices=range(6))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder / "store")
        training = {"epochs": 1}
        config = {"dataset": {"name": "mnist"}, "model": {"name": "lab"}, "training": training}
        run_id = retrain(RunConfig.model_validate(config), store.root).run_id
        data = store.manifest(run_id).steps.load_data
        test = read_dataset(store.local_dataset(data.name, data.digest)).test
        every = score_days(store, test, folder, options.days, options.images)
        files = deliver(store, every, folder, options.kills)
        write(store, measure(store), "day")
        found, expected = store.read_table("live").to_pandas(), recomputed(store, files, run_id)
        pd.testing.assert_frame_equal(
            found[expected.columns].reset_index(drop=True), expected, check_dtype=False, rtol=1e-9
        )
        jobs = store.read_table("label_jobs").to_pandas()
        print("| what | count |\n| --- | --- |")
        print(f"| days | {options.days} |\n| scored rows | {found.rows.sum():,} |")
        print(f"| files of labels | {len(files)} |\n| rows in them | {len(every) + len(files):,} |")
        for column in ("labelled", "corrected", "repeated", "quarantined"):
            print(f"| {column} | {jobs[column].sum():,} |")
        print(f"| processes killed | {options.kills} |")
        print(f"| rows of `live` that differ | 0 of {len(found)} |")


if __name__ == "__main__":
    main()
