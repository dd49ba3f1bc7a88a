"""Retrain on forty days of labelled images, with late and corrected days and kills.

    python benchmarks/forty_days.py [--days 40] [--rows 500] [--window 7] [--kills 10] [--json]

Each night of a simulated calendar, the images of the day are written to a dated source, and the
night does what a scheduled run does: resume a stopped run, or check for news, or train. Three days
are written two nights late, one is corrected, every fifth has few images, and some nights are
killed by SIGKILL, at a failpoint or at a random moment, and repeated. At the end the store is
compared with what the program itself knows about the images, which it reads with pyarrow alone:

- every image of a window is in exactly one split of the run, and nothing else is;
- there is a run for each night with enough news, and for no other;
- how much the datasets of the store have grown each night, by the bytes of the new files;
- runs that are made again as of their day have the same weights, byte for byte;
- how long nights without news take, in a process of their own.
"""

import argparse
import collections
import io
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from nnbuild.config.schema import RunConfig, default_data_dir
from nnbuild.data import sources
from nnbuild.pipeline.run import (
    decide_and_commit,
    open_run,
    resumable,
    run_context,
    train_and_evaluate,
)
from nnbuild.pipeline.unchanged import unchanged_since
from nnbuild.runtime.environment import cache_folder
from nnbuild.store import Store

FIRST = date(2026, 3, 1)
SECONDS_OF_A_RUN, SECONDS_TO_START = 4.0, 3.0  # before the first one is measured
FEW, EVERY = 4, 5  # a fourth of the images on every fifth day
LATE_NIGHTS = 2
INGESTION_POINTS = ("ingest:written", "ingest:published", "ingest:recorded")
RUN_POINTS = ("load_data:end", "fit_model:begin", "commit:laid-out", "commit:dataset_parts")
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import forty_days; forty_days.child()"


def day(number: int) -> date:
    """Return a day by its number."""
    return FIRST + timedelta(days=number)


def night(number: int) -> datetime:
    """Return the time at which the run of a day begins."""
    return datetime.combine(day(number), datetime.min.time(), UTC) + timedelta(hours=23)


def make(store: Store, config: RunConfig, now: datetime) -> str | None:
    """Do what a scheduled run does at a time.

    Returns:
        ID of the run; None if there was too little news.
    """
    stopped, _ = resumable(store, config, now=now)
    if stopped is None and unchanged_since(store, config, now) is not None:
        return None
    run = open_run(config, store.root, resume=stopped and stopped.run_id, now=now)
    with run_context(run):
        train_and_evaluate(run)
        return decide_and_commit(run).run_id


def child() -> None:
    """Make the run of a night in this process; the arguments are those of `Nights.process`."""
    root, config, number = sys.argv[2:5]
    print(make(Store(root), RunConfig.model_validate_json(config), night(int(number))), flush=True)


@dataclass
class Source:
    """The source of the days, and what the program knows about it.

    Attributes:
        folder: Folder of the days.
        images: Images to draw from, each used once.
        labels: Their labels.
        content: Image and label of every row of each day, as bytes, as written last.
        used: Number of images drawn so far.
    """

    folder: Path
    images: np.ndarray
    labels: np.ndarray
    content: dict[int, list[bytes]] = field(default_factory=dict)
    used: int = 0

    def write(self, number: int, rows: int, kept: int = 0) -> int:
        """Write a day; return its bytes.

        Args:
            number: Number of the day.
            rows: Number of new images.
            kept: Number of images of the day's earlier content to keep.
        """
        old = self.content.get(number, [])[:kept]
        chosen = slice(self.used, self.used + rows)
        self.used += rows
        new = [
            image.tobytes() + bytes([label])
            for image, label in zip(self.images[chosen], self.labels[chosen], strict=True)
        ]
        self.content[number] = [*old, *new]
        pixels = np.frombuffer(b"".join(self.content[number]), np.uint8)
        table = pixels.reshape(len(self.content[number]), -1)
        file = io.BytesIO()
        side = self.images.shape[1]
        np.savez_compressed(
            file, images=table[:, :-1].reshape(-1, side, side), labels=table[:, -1].astype(np.int64)
        )
        path = self.folder / f"{day(number)}.npz"
        path.with_suffix(".part").write_bytes(file.getvalue())
        path.with_suffix(".part").replace(path)
        return path.stat().st_size

    def window(self, last: int, length: int) -> collections.Counter[bytes]:
        """Return how often each image, with its label, is in a window."""
        days = range(max(0, last - length + 1), last + 1)
        return collections.Counter(each for n in days for each in self.content.get(n, []))


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stored(store: Store, run_id: str) -> collections.Counter[bytes]:
    """Return how often each image, with its label, is in the dataset of a run."""
    data = store.manifest(run_id).steps.load_data
    folder = store.root / "datasets" / data.name
    parts = json.loads((folder / data.digest / "dataset.json").read_text())["parts"]
    rows: collections.Counter[bytes] = collections.Counter()
    for part in parts:
        names = json.loads((folder / part / "dataset.json").read_text())["class_names"]
        for path in (folder / part).glob("*.parquet"):
            table = pq.ParquetFile(path).read()
            for image, label in zip(
                table["image"].to_pylist(), table["label"].to_pylist(), strict=True
            ):
                rows[image + bytes([int(names[label])])] += 1
    return rows


class Nights:
    """The nights of the calendar.

    Args:
        folder: Empty folder.
        options: Options of the command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.options, self.random = options, random.Random(options.seed)  # noqa: S311
        dataset = sources.load(options.dataset, data_dir=default_data_dir(), cache=cache_folder())
        (folder / "labelled").mkdir()
        self.source = Source(
            folder / "labelled", dataset.train.images[..., 0], dataset.train.labels.astype(np.uint8)
        )
        self.store = Store(folder / "store")
        self.config = RunConfig.model_validate(
            {
                "dataset": {
                    "name": f"{folder}/labelled/{{date}}.npz",
                    "window": options.window,
                    "min_new": options.rows // 2,
                },
                "model": {"name": "lab"},
                "training": {"epochs": 1, "threads": 1},
            }
        )
        middle = range(3, options.days - LATE_NIGHTS - 1)
        marked = self.random.sample(middle, options.late + 1)
        self.late, self.corrected = set(marked[:-1]), marked[-1]
        # On other nights little or nothing arrives, and no run gets to these points.
        busy = [n for n in range(1, options.days) if n not in self.late and n % EVERY != EVERY - 1]
        self.kills = dict.fromkeys(self.random.sample(busy, options.kills), "random")
        points = [*INGESTION_POINTS, *RUN_POINTS]
        for number, point in zip(sorted(self.kills), points, strict=False):
            self.kills[number] = point
        self.seconds = SECONDS_OF_A_RUN
        self.runs: dict[int, str] = {}
        self.expected: list[int] = []
        self.seen: dict[int, collections.Counter[bytes]] = {}
        self.growth: list[tuple[int, int]] = []
        self.idle: list[tuple[float, float]] = []
        self.killed: collections.Counter[str] = collections.Counter()

    def arrive(self, number: int) -> int:
        """Write what arrives on a day; return its bytes."""
        rows = self.options.rows // (FEW if number % EVERY == EVERY - 1 else 1)
        written = 0 if number in self.late else self.source.write(number, rows)
        if number - LATE_NIGHTS in self.late:
            written += self.source.write(number - LATE_NIGHTS, self.options.rows)
        if number - LATE_NIGHTS == self.corrected:
            kept = len(self.source.content[self.corrected]) // 2
            written += self.source.write(self.corrected, self.options.rows // 2, kept)
        return written

    def has_news(self, number: int) -> bool:
        """Return whether enough images of a window are not in that of the last run."""
        if not self.expected:
            return True
        window = self.source.window(number, self.options.window)
        last = self.seen[self.expected[-1]]
        return (window - last).total() >= self.options.rows // 2

    def process(self, number: int, point: str = "") -> subprocess.Popen[str]:
        """Start a process that makes the run of a night."""
        here, root = str(Path(__file__).parent), str(self.store.root)
        command = [sys.executable, "-c", PROGRAM, here, root, self.config.model_dump_json()]
        return subprocess.Popen(
            [*command, str(number)],
            env=os.environ | {"NNBUILD_FAULT": point},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def kill(self, number: int, point: str) -> None:
        """Let the run of a night be killed, if it gets there."""
        process = self.process(number, "" if point == "random" else point)
        if point == "random":
            time.sleep(self.random.uniform(1, self.seconds + SECONDS_TO_START))
            process.kill()
        process.communicate()
        killed = process.returncode == -signal.SIGKILL
        self.killed["not reached" if not killed else point] += 1

    def spend(self, number: int) -> None:
        """Let a day and its night pass."""
        before = size(self.store.root / "datasets")
        written = self.arrive(number)
        expected = self.has_news(number)
        if number in self.kills:
            self.kill(number, self.kills[number])
        known = set(self.store.run_ids())
        if expected:
            began = time.perf_counter()
            run_id = make(self.store, self.config, night(number))
            self.seconds = time.perf_counter() - began
        else:
            began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            output, _ = self.process(number).communicate()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
            self.idle.append((time.perf_counter() - began, processor))
            run_id = output.strip() if output.strip() != "None" else None
        if run_id is None and number in self.kills:  # it was killed after its commit
            run_id = max(set(self.store.run_ids()) - set(self.runs.values()), default=None)
        if run_id is not None:
            self.runs[number] = run_id
        if expected:
            self.expected.append(number)
            self.seen[number] = self.source.window(number, self.options.window)
        self.growth.append((size(self.store.root / "datasets") - before, written))
        new = sorted(set(self.store.run_ids()) - known)
        ratio = f"{self.growth[-1][0] / written:.3f}" if written else "-"
        print(f"{day(number)} {written:>9,} bytes  x {ratio:<6} run {new[-1] if new else '-'}")

    def repeat(self) -> list[bool]:
        """Make some runs again as of their day; return whether the weights are the same."""
        numbers = sorted(self.random.sample(sorted(self.runs), self.options.repeats))
        results = []
        for number in numbers:
            dataset = self.config.dataset.model_copy(update={"as_of": day(number)})
            config = self.config.model_copy(update={"dataset": dataset})
            again = make(self.store, config, night(self.options.days))
            digests = [
                self.store.manifest(each).files[f"runs/{each}/model.keras"].sha256
                for each in (self.runs[number], str(again))
            ]
            results.append(digests[0] == digests[1])
        return results

    def result(self) -> dict[str, Any]:
        """Compare the store with what the program knows."""
        exact = [stored(self.store, self.runs[each]) == self.seen[each] for each in self.runs]
        parts = self.store.read_table("dataset_parts").to_pylist()
        counted: collections.Counter[str] = collections.Counter()
        for each in parts:
            counted[each["run_id"]] += each["rows"]
        counts = [counted[self.runs[each]] == self.seen[each].total() for each in self.runs]
        ratios = [grown / written for grown, written in self.growth if written]
        versions = {(each["day"], each["version"]) for each in parts}
        repeated = self.repeat()
        return {
            "nights": self.options.days,
            "runs": len(self.runs),
            "nights with enough news": len(self.expected),
            "runs on exactly these nights": sorted(self.runs) == self.expected,
            "runs with every image once": f"{sum(exact)} of {len(exact)}",
            "runs whose dataset_parts agree": f"{sum(counts)} of {len(counts)}",
            "late days": len(self.late),
            "corrected days": sum(version > 1 for _, version in versions),
            "kills": dict(self.killed),
            "bytes added to datasets, by the bytes that arrived": {
                "all nights": round(
                    sum(grown for grown, _ in self.growth) / sum(each for _, each in self.growth), 3
                ),
                "largest of a night": round(max(ratios), 3),
                "on a night without files": max(
                    (grown for grown, written in self.growth if not written), default=0
                ),
            },
            "made again with the same weights": f"{sum(repeated)} of {len(repeated)}",
            "nights without news": len(self.idle),
            "their seconds, median and longest": _spread([each for each, _ in self.idle]),
            "their processor seconds, median and longest": _spread([each for _, each in self.idle]),
        }


def _spread(values: list[float]) -> list[float]:
    return [round(each, 2) for each in (statistics.median(values), max(values))] if values else []


def main() -> None:
    """Parse the options, let the nights pass, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=40)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--late", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        nights = Nights(Path(folder), options)
        began = time.perf_counter()
        for number in range(options.days):
            nights.spend(number)
        result = nights.result() | {"seconds": round(time.perf_counter() - began)}
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
