"""Kill real runs at every failpoint and at random moments, and check that they resume exactly.

    python benchmarks/crash_recovery.py [--kills 100] [--seed 0] [--runs-in-one-process 50] [--json]

All runs have the same configuration and store, and each takes as many processes as it needs. Most
processes are killed: by themselves at a failpoint of the code (`$NNBUILD_FAULT`), or by this
program at a random moment. Every fifth run uses the command `nnbuild run` with its Prefect flow;
the others call the library. Meanwhile a thread reads every table. Each finished run is compared
with a run that was never killed: weights, history, evaluation, confusion, calibration and
predictions must be equal to the byte. Finally, many runs in one process show whether it leaks.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild.errors import StoreError
from nnbuild.pipeline.registry import STEPS
from nnbuild.store import Store
from nnbuild.store.filesystem import file_digest

TABLES = ("history", "evaluation", "confusion", "calibration", "predictions")
POINTS = (
    *(f"{step.name}:{end}" for step in STEPS for end in ("begin", "end")),
    *(f"checkpoint:{part}" for part in ("begin", "arrays", "end")),
    *(f"commit:{part}" for part in ("linked", "laid-out", "runs", *TABLES, "decisions")),
    "champion:changed",
    "champion:recorded",
)
MAX_KILLS_PER_RUN = 4
MAX_MESSAGES = 5
EPOCHS = 4
LIBRARY = """
import sys, nnbuild
store, resume = sys.argv[1], sys.argv[2] or None
config = nnbuild.RunConfig.model_validate_json(sys.argv[3])
print("ready", flush=True)
nnbuild.retrain(config, store, resume=resume)
"""
REPEATED_RUNS = """
import gc, os, sys, nnbuild
config, count = nnbuild.RunConfig.model_validate_json(sys.argv[2]), int(sys.argv[3])
def usage():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20
for number in range(count):
    nnbuild.retrain(config, sys.argv[1])
    if number == count // 5:
        before = usage()
after = usage()
print(after[0] - before[0], after[1] - before[1])
"""


@dataclass
class Counts:
    """Counts that are printed at the end.

    Attributes:
        kills: Number of killed processes.
        at_points: Number of processes that were killed at a failpoint.
        at_random: Number of processes that were killed at a random moment.
        resumes: Number of processes that resumed a run.
        runs: Number of committed runs.
        identical: Number of committed runs that equal the run that was never killed.
        rows_read: Number of rows that the reading thread has read.
        torn_reads: Number of reads that failed or returned an incomplete table.
        leaked_descriptors: Growth of the number of open files in the process of many runs.
        leaked_mebibytes: Growth of the memory of that process.
        seconds: Duration of the whole program.
        trouble: The first messages of torn reads.
    """

    kills: int = 0
    at_points: int = 0
    at_random: int = 0
    resumes: int = 0
    runs: int = 0
    identical: int = 0
    rows_read: int = 0
    torn_reads: int = 0
    leaked_descriptors: int | None = None
    leaked_mebibytes: float | None = None
    seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)


def write_dataset(folder: Path) -> Path:
    """Write a few hundred learnable 12×12 images of three classes, and return the path."""
    random_numbers = np.random.default_rng(0)
    patterns = random_numbers.integers(0, 200, (3, 12, 12))
    arrays = {}
    for split, count in (("train", 360), ("test", 90)):
        labels = np.arange(count) % 3
        noise = random_numbers.integers(0, 56, (count, 12, 12))
        arrays |= {
            f"x_{split}": (patterns[labels] + noise).astype(np.uint8),
            f"y_{split}": labels.astype(np.uint8),
        }
    np.savez(folder / "small.npz", **arrays)
    return folder / "small.npz"


def make_config(dataset: Path) -> str:
    """Return a configuration, as JSON, with all kinds of state that a resume must restore.

    These are dropout, augmentation, a plateau schedule, early stopping and restored best weights.
    """
    settings = {
        "dataset": {"name": str(dataset)},
        "model": {"name": "convnet"},
        "training": {
            "epochs": EPOCHS,
            "batch_size": 16,
            "augmentation": "shift",
            "restore_best_weights": "val_loss",
            "early_stopping": {"patience": 3},
            "reduce_on_plateau": {"patience": 1},
            "threads": 2,
        },
        "seed": 5,
    }
    return json.dumps(settings)


class Reader(threading.Thread):
    """Thread that reads every table repeatedly and checks that committed runs are complete."""

    def __init__(self, store: Store, counts: Counts, expected: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.store, self.counts, self.expected = store, counts, expected
        self.stop = threading.Event()

    def run(self) -> None:
        """Read until `stop` is set."""
        while not self.stop.wait(0.1):
            try:
                self._read()
            except Exception as error:  # noqa: BLE001  (every error of a reader is a torn read)
                self.counts.torn_reads += 1
                if len(self.counts.trouble) < MAX_MESSAGES:
                    self.counts.trouble.append(f"{type(error).__name__}: {error}"[:300])

    def _read(self) -> None:
        committed = self.store.run_ids()
        for name in TABLES if committed else ():
            table = self.store.read_table(name)
            self.counts.rows_read += len(table)
            rows = {
                each["values"]: each["counts"]
                for each in table["run_id"].value_counts().to_pylist()
            }
            for run_id in committed:
                if rows.get(run_id) != self.expected[name]:
                    raise StoreError(
                        f"{name} has {rows.get(run_id)} rows of run {run_id}, "
                        f"expected {self.expected[name]}"
                    )


def read_results(store: Store, run_id: str) -> dict[str, Any]:
    """Return everything in a run that its seed determines."""
    rows = store.read_table("history", run_id).to_pylist()
    history = [
        (row["epoch"], row["metric"], row["value"])
        for row in rows
        if row["metric"] != "epoch_seconds"
    ]
    tables = {
        name: store.read_table(name, run_id).drop_columns("run_id").to_pydict()
        for name in TABLES[1:]
    }
    folder = store.root / "runs" / run_id
    return {
        "history": history,
        **tables,
        "keras": file_digest(folder / "model.keras"),
        "onnx": file_digest(folder / "model.onnx"),
    }


def start_process(
    store: Store, config: str, resume: str, *, by_command: bool, point: str | None
) -> subprocess.Popen[bytes]:
    """Start a process that begins or resumes a run.

    Args:
        store: Store of the run.
        config: Configuration, as JSON.
        resume: ID of the run to resume, or "" to begin one.
        by_command: Whether to use `nnbuild run` rather than the library.
        point: Failpoint at which the process kills itself, if any.
    """
    environment = dict(os.environ) | ({"NNBUILD_FAULT": point} if point else {})
    if by_command:
        settings = json.loads(config)
        (store.root.parent / "run.toml").write_text(_toml(settings))
        command = [
            "-m",
            "flows.cli.main",
            "run",
            "--config",
            str(store.root.parent / "run.toml"),
            "--store",
            str(store.root),
        ]
        command += ["--resume", resume] if resume else []
    else:
        command = ["-c", LIBRARY, str(store.root), resume, config]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=nowhere, stderr=nowhere
    )


def _toml(settings: dict[str, Any], prefix: str = "") -> str:
    values = [
        f"{name} = {json.dumps(value)}"
        for name, value in settings.items()
        if not isinstance(value, dict)
    ]
    sections = [
        f"[{prefix}{name}]\n{_toml(value, f'{prefix}{name}.')}"
        for name, value in settings.items()
        if isinstance(value, dict)
    ]
    return "\n".join([*values, *sections]) + "\n"


def complete_run(
    store: Store, config: str, kills: Iterator[str | float], counts: Counts, *, by_command: bool
) -> str:
    """Kill and resume one run until it is committed, and return its ID.

    Args:
        store: Store of the run.
        config: Configuration, as JSON.
        kills: Failpoints, or seconds after which to kill; at most MAX_KILLS_PER_RUN are used.
        counts: Counts to update.
        by_command: Whether to use `nnbuild run` rather than the library.
    """
    known, resume = {*store.run_ids(), *(each.run_id for each in store.unfinished_runs())}, ""
    for attempt in range(MAX_KILLS_PER_RUN + 1):
        kill = next(kills, None) if attempt < MAX_KILLS_PER_RUN else None
        with start_process(
            store,
            config,
            resume,
            by_command=by_command,
            point=kill if isinstance(kill, str) else None,
        ) as run:
            if isinstance(kill, float):
                try:
                    run.wait(kill)
                except subprocess.TimeoutExpired:
                    run.kill()
            run.wait()
        killed = run.returncode == -signal.SIGKILL
        counts.kills += killed
        counts.at_points += killed and isinstance(kill, str)
        counts.at_random += killed and isinstance(kill, float)
        new = sorted({*store.run_ids(), *(each.run_id for each in store.unfinished_runs())} - known)
        if new and new[0] in store.run_ids():
            return new[0]
        if not killed:
            raise SystemExit(f"a process that was not killed exited with code {run.returncode}")
        counts.resumes += bool(new)
        resume = new[0] if new else ""
    raise SystemExit("the last process of a run was not killed, but did not commit the run")


def plan_kills(number: int, seed: int, seconds: float) -> Iterator[str | float]:
    """Yield where or when to kill: every third time at a random moment, else at a failpoint.

    Args:
        number: Number of kills.
        seed: Seed of the order of the failpoints and of the random moments.
        seconds: Duration of a process that is not killed.

    Yields:
        A failpoint, each one in turn, or the seconds after the start of the process.
    """
    chance = random.Random(seed)  # noqa: S311
    points: list[str] = []
    for kill in range(number):
        if not points:
            points = chance.sample(POINTS, len(POINTS))
        yield chance.uniform(0.3, 1.0) * seconds if kill % 3 == 2 else points.pop()


def run_crash_test(number: int, seed: int, repeated_runs: int) -> Counts:
    """Run the whole test in a temporary folder.

    Args:
        number: Least number of kills.
        seed: Seed of the kills.
        repeated_runs: Number of runs in one process that is checked for leaks; 0 skips this.
    """
    counts, start_time = Counts(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(write_dataset(Path(folder)))
        reference = Store(Path(folder) / "straight")
        before = time.perf_counter()
        expected_id = complete_run(reference, config, iter(()), Counts(), by_command=False)
        duration = time.perf_counter() - before
        expected = read_results(reference, expected_id)
        store = Store(Path(folder) / "store")
        rows = {name: len(reference.read_table(name, expected_id)) for name in TABLES}
        reader = Reader(store, counts, rows)
        reader.start()
        kills = plan_kills(10**9, seed, duration)
        while counts.kills < number:
            left = islice(kills, number - counts.kills)
            run_id = complete_run(store, config, left, counts, by_command=counts.runs % 5 == 4)
            counts.runs += 1
            counts.identical += read_results(store, run_id) == expected
            print(
                f"{counts.kills} kills, {counts.runs} runs, {counts.identical} identical",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.5)
        reader.stop.set()
        reader.join()
        if repeated_runs:
            arguments = [str(Path(folder) / "many"), config, str(repeated_runs)]
            command = [sys.executable, "-c", REPEATED_RUNS, *arguments]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            descriptors, mebibytes = done.stdout.split()
            counts.leaked_descriptors = int(descriptors)
            counts.leaked_mebibytes = round(float(mebibytes), 1)
    counts.seconds = round(time.perf_counter() - start_time, 1)
    return counts


def main() -> None:
    """Print the counts; exit with 1 if a run differs or a read was torn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="least number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    parser.add_argument(
        "--runs-in-one-process",
        type=int,
        default=50,
        help="number of runs in the process that is checked for leaks; 0 skips this",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    counts = run_crash_test(options.kills, options.seed, options.runs_in_one_process)
    if options.json:
        print(json.dumps(vars(counts)))
    else:
        print("| what | count |\n| --- | --- |")
        for name, value in vars(counts).items():
            print(f"| {name.replace('_', ' ')} | {value if value != [] else 'none'} |")
    sys.exit(counts.identical < counts.runs or counts.torn_reads > 0)


if __name__ == "__main__":
    main()
