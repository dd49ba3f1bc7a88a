"""Kill real processes at every named point and at random moments, resume, and compare with a run that was never killed.

    python benchmarks/crash_recovery.py [--kills 100] [--seed 0] [--runs-in-one-process 50] [--json]

Runs of one config are made in one store, each by as many processes as it takes. Most processes are killed: by
themselves at a named point of the code (`$NNBUILD_FAULT`), or by this one at a random moment. Every fifth run is the
command `nnbuild run` with its Prefect flow, the others call the library. All the while a thread reads every table. At
the end each run is compared with one that was never killed: weights, history, evaluation, confusion, calibration,
predictions, byte for byte. Then many runs in one process show whether it leaks.
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
)
MOST_KILLS_OF_A_RUN = 4
MOST_TROUBLE = 5
EPOCHS = 4
LIBRARY = """
import sys, nnbuild
store, resume = sys.argv[1], sys.argv[2] or None
config = nnbuild.RunConfig.model_validate_json(sys.argv[3])
print("ready", flush=True)
nnbuild.retrain(config, store, resume=resume)
"""
IN_ONE_PROCESS = """
import gc, os, resource, sys, nnbuild
config, count = nnbuild.RunConfig.model_validate_json(sys.argv[2]), int(sys.argv[3])
def held():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20
for number in range(count):
    nnbuild.retrain(config, sys.argv[1])
    if number == count // 5:
        before = held()
after = held()
print(after[0] - before[0], after[1] - before[1])
"""


@dataclass
class Counts:
    """What is told at the end."""

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
    """Three classes of 12×12 images that can be learnt, some hundred of them."""
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


def config_of(dataset: Path) -> str:
    """Dropout, augmentation, a plateau schedule, early stopping and best weights: all that a resume must bring back."""
    settings = {
        "dataset": {"name": str(dataset)},
        "model": {"name": "convnet"},
        "training": {
            "epochs": EPOCHS,
            "batch_size": 16,
            "augment": "shift",
            "best_weights": "val_loss",
            "early_stopping": {"patience": 3},
            "reduce_on_plateau": {"patience": 1},
            "threads": 2,
        },
        "seed": 5,
    }
    return json.dumps(settings)


class Reader(threading.Thread):
    """Reads every table again and again; a committed run must be whole in each of them."""

    def __init__(self, store: Store, counts: Counts, expected: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.store, self.counts, self.expected, self.over = (
            store,
            counts,
            expected,
            threading.Event(),
        )

    def run(self) -> None:
        """Until it is told that all is over."""
        while not self.over.wait(0.1):
            try:
                self._read()
            except Exception as error:  # noqa: BLE001  (whatever a reader meets is what is counted)
                self.counts.torn_reads += 1
                if len(self.counts.trouble) < MOST_TROUBLE:
                    self.counts.trouble.append(f"{type(error).__name__}: {error}"[:300])

    def _read(self) -> None:
        committed = self.store.run_ids()
        for name in TABLES if committed else ():
            table = self.store.read_table(name)
            self.counts.rows_read += len(table)
            found = {
                each["values"]: each["counts"]
                for each in table["run_id"].value_counts().to_pylist()
            }
            for run_id in committed:
                if found.get(run_id) != self.expected[name]:
                    raise StoreError(
                        f"{name} has {found.get(run_id)} rows of {run_id}, not {self.expected[name]}"
                    )


def values(store: Store, run_id: str) -> dict[str, Any]:
    """Everything of a run that its seed decides."""
    history = store.read_table("history", run_id).to_pylist()
    told = [
        (row["epoch"], row["metric"], row["value"])
        for row in history
        if row["metric"] != "epoch_seconds"
    ]
    tables = {
        name: store.read_table(name, run_id).drop_columns("run_id").to_pydict()
        for name in TABLES[1:]
    }
    record = store.root / "runs" / run_id
    return {
        "history": told,
        **tables,
        "keras": file_digest(record / "model.keras"),
        "onnx": file_digest(record / "model.onnx"),
    }


def started(
    store: Store, config: str, resume: str, *, by_command: bool, point: str | None
) -> subprocess.Popen[bytes]:
    """A process that makes or resumes a run."""
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


def _toml(settings: dict[str, Any], above: str = "") -> str:
    plain = [
        f"{name} = {json.dumps(value)}"
        for name, value in settings.items()
        if not isinstance(value, dict)
    ]
    inner = [
        f"[{above}{name}]\n{_toml(value, f'{above}{name}.')}"
        for name, value in settings.items()
        if isinstance(value, dict)
    ]
    return "\n".join([*plain, *inner]) + "\n"


def one_run(
    store: Store, config: str, kills: Iterator[str | float], counts: Counts, *, by_command: bool
) -> str:
    """Make a run, killed as often as the list of kills says and a run may be.

    Returns:
        Its id.
    """
    known, resume = {*store.run_ids(), *(each.run_id for each in store.unfinished_runs())}, ""
    for attempt in range(MOST_KILLS_OF_A_RUN + 1):
        kill = next(kills, None) if attempt < MOST_KILLS_OF_A_RUN else None
        with started(
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
            raise SystemExit(f"a process ended with code {run.returncode}, though nobody killed it")
        counts.resumes += bool(new)
        resume = new[0] if new else ""
    raise SystemExit("a run was not committed by its last process, which nobody killed")


def kills_of(number: int, seed: int, seconds: float) -> Iterator[str | float]:
    """Where or when to kill: every named point in turn, and every third kill at a random moment of a process's life."""
    chance = random.Random(seed)  # noqa: S311
    points: list[str] = []
    for kill in range(number):
        if not points:
            points = chance.sample(POINTS, len(POINTS))
        yield chance.uniform(0.3, 1.0) * seconds if kill % 3 == 2 else points.pop()


def soak(number: int, seed: int, in_one_process: int) -> Counts:
    """All of it."""
    counts, began = Counts(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(write_dataset(Path(folder)))
        straight = Store(Path(folder) / "straight")
        before = time.perf_counter()
        expected_id = one_run(straight, config, iter(()), Counts(), by_command=False)
        life = time.perf_counter() - before
        expected = values(straight, expected_id)
        store = Store(Path(folder) / "store")
        rows = {name: len(straight.read_table(name, expected_id)) for name in TABLES}
        reader = Reader(store, counts, rows)
        reader.start()
        kills = kills_of(10**9, seed, life)
        while counts.kills < number:
            run_id = one_run(store, config, kills, counts, by_command=counts.runs % 5 == 4)
            counts.runs += 1
            counts.identical += values(store, run_id) == expected
            print(
                f"{counts.kills} kills, {counts.runs} runs, {counts.identical} identical",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.5)
        reader.over.set()
        reader.join()
        if in_one_process:
            command = [
                sys.executable,
                "-c",
                IN_ONE_PROCESS,
                str(Path(folder) / "many"),
                config,
                str(in_one_process),
            ]
            told = subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.split()
            counts.leaked_descriptors, counts.leaked_mebibytes = (
                int(told[0]),
                round(float(told[1]), 1),
            )
    counts.seconds = round(time.perf_counter() - began, 1)
    return counts


def main() -> None:
    """Print the table; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-in-one-process", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    counts = soak(given.kills, given.seed, given.runs_in_one_process)
    told = dict(vars(counts))
    if given.json:
        print(json.dumps(told))
    else:
        print("| what | count |\n| --- | --- |")
        for name, value in told.items():
            print(f"| {name.replace('_', ' ')} | {value if value != [] else 'none'} |")
    sys.exit(counts.identical < counts.runs or counts.torn_reads > 0)


if __name__ == "__main__":
    main()
