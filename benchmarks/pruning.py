"""Prune a store of many nights, killed again and again, and check everything that is kept.

    python benchmarks/pruning.py [--nights 40] [--keep 5] [--kills 20] [--seed 0] [--json]

Each night trains a small network on new data with the library, and every fifth night scores an
input. Every fourth night is promoted. Finally a fit is killed, which uses the data of the first
night. Then copies of the store are pruned in processes of their own, which are killed: in turns at
a failpoint (`$NNBUILD_FAULT`) and at a random moment. After each kill every run that readers see is
verified by its digests. Then the store is pruned to the end, and every kept run has to verify and
to score as before, rollbacks have to lead to the kept champions, and the killed fit has to resume
to the same weights as in the store that was not pruned.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

import nnbuild
from nnbuild.config.schema import RunConfig
from nnbuild.errors import NnbuildError
from nnbuild.pipeline import retention
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.scorer import score
from nnbuild.store import Store, champion, deletion
from nnbuild.store.filesystem import file_digest

POINTS = (
    *("prune:planned", "prune:row", "prune:rows", "prune:runs", "prune:tables"),
    *("prune:datasets", "prune:moved", "prune:emptied"),
)
ADA = champion.Author("ada@build-7")
FIT = """
import sys, nnbuild
nnbuild.retrain(nnbuild.RunConfig.model_validate_json(sys.argv[2]), sys.argv[1])
"""
PRUNE = """
import sys
from datetime import datetime
from nnbuild.pipeline.retention import RetentionConfig, prune
from nnbuild.store import Store
store, keep, now = Store.open(sys.argv[1]), int(sys.argv[2]), datetime.fromisoformat(sys.argv[3])
print("ready", flush=True)
prune(store, RetentionConfig(keep=keep, scores=True), now=now)
"""


@dataclass
class Counts:
    """Counts that are printed at the end.

    Attributes:
        nights: Number of runs before.
        kept: Number of runs after.
        kept_although_old: Number of those that are older than the newest.
        jobs: Number of scoring jobs before and after.
        datasets: Number of datasets before and after.
        bytes_before: Bytes of the store before.
        bytes_after: Bytes of the store after.
        bytes_said: Bytes that the dry run said.
        kills: Number of killed processes.
        at_points: Number of those that were killed at a failpoint.
        unkilled: Number of processes that ended before they could be killed.
        verified: Number of runs that were verified after a kill.
        lost: Runs that were kept and are missing or changed, of all checks.
        scored: Number of kept runs that score as before.
        rollbacks: Number of rollbacks to a kept champion with an intact model.
        resumed: Whether the killed fit resumed to the same weights as without the pruning.
        seconds: Duration of one pruning that is not killed.
        trouble: The first messages of what was wrong.
    """

    nights: int = 0
    kept: int = 0
    kept_although_old: int = 0
    jobs: tuple[int, int] = (0, 0)
    datasets: tuple[int, int] = (0, 0)
    bytes_before: int = 0
    bytes_after: int = 0
    bytes_said: int = 0
    kills: int = 0
    at_points: int = 0
    unkilled: int = 0
    verified: int = 0
    lost: int = 0
    scored: int = 0
    rollbacks: int = 0
    resumed: bool = False
    seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)


def write_night(folder: Path, night: int) -> Path:
    """Write a few hundred learnable images of three classes, new ones each night."""
    random_numbers = np.random.default_rng(night)
    patterns = np.random.default_rng(0).integers(0, 200, (3, 12, 12))
    arrays = {}
    for split, count in (("train", 300), ("test", 60)):
        labels = np.arange(count) % 3
        noise = random_numbers.integers(0, 56, (count, 12, 12))
        arrays |= {
            f"x_{split}": (patterns[labels] + noise).astype(np.uint8),
            f"y_{split}": labels.astype(np.uint8),
        }
    path = folder / f"night-{night}" / "labelled.npz"
    path.parent.mkdir()
    np.savez(path, **arrays)
    return path


def config_of(path: Path, epochs: int = 1) -> RunConfig:
    """Return the settings of a run."""
    settings = {
        "dataset": {"name": str(path)},
        "model": {"name": "lab"},
        "training": {"epochs": epochs, "threads": 2},
        "gate": {"enabled": False},
    }
    return RunConfig.model_validate(settings)


def build(folder: Path, nights: int) -> tuple[Store, str]:
    """Make a store of many nights with an unfinished run, and return its ID."""
    store = Store(folder / "store")
    for night in range(nights):
        path = write_night(folder, night)
        run_id = nnbuild.retrain(config_of(path), store.root).run_id
        if night % 4 == 0:
            champion.promote(store, run_id, ADA)
        if night % 5 == 0:
            score(ScoreConfig(input=str(path), model=run_id), store.root)
    config = config_of(folder / "night-0" / "labelled.npz", epochs=4).model_dump_json()
    subprocess.run(
        [sys.executable, "-c", FIT, str(store.root), config],
        env=os.environ | {"NNBUILD_FAULT": "checkpoint:end"},
        check=False,
    )
    (waiting,) = store.unfinished_runs()
    return store, waiting.run_id


def verify(store: Store, run_id: str) -> None:
    """Require that each file of a run has the digest of its manifest, and that its data is there.

    Raises:
        AssertionError: A file is missing or has changed.
        NnbuildError: Something cannot be read.
    """
    manifest = store.manifest(run_id)
    for name, entry in manifest.files.items():
        if file_digest(store.root / name) != entry.sha256:
            raise AssertionError(f"{name} has changed")
    if not store.has_dataset(manifest.row.dataset or "", manifest.row.dataset_digest or ""):
        raise AssertionError(f"run {run_id} has lost its dataset")


def check(store: Store, expected: set[str], counts: Counts) -> None:
    """Verify every visible run, and that none of the expected ones is missing."""
    visible = set(store.run_ids())
    for run_id in sorted(expected | visible):
        try:
            verify(store, run_id)
        except (AssertionError, NnbuildError, OSError) as error:
            counts.lost += 1
            counts.trouble.append(str(error))
        counts.verified += 1


def kill_once(root: Path, keep: int, now: datetime, point: str | None, delay: float) -> str:
    """Prune in a process that is killed; return `point`, `random` or `ended`."""
    environment = os.environ | ({"NNBUILD_FAULT": point} if point else {})
    command = [sys.executable, "-c", PRUNE, str(root), str(keep), now.isoformat()]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is not None:
            process.stdout.readline()
        if point is None:
            time.sleep(delay)
            process.kill()
        process.wait()
    if process.returncode != -signal.SIGKILL:
        return "ended"
    return "point" if point else "random"


def size(root: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())


def rows_of(store: Store, folder: Path, run_id: str) -> list[int]:
    """Return the classes that a run's model predicts for the images of the first night."""
    source = str(folder / "night-0" / "labelled.npz")
    done = score(ScoreConfig(input=source, model=run_id), store.root)
    found: list[int] = store.read_table("scores", done.score_id)["predicted"].to_pylist()
    return found


def measure(folder: Path, arguments: argparse.Namespace) -> Counts:
    """Run the whole experiment."""
    counts, chance = Counts(nights=arguments.nights), random.Random(arguments.seed)  # noqa: S311
    pristine, waiting = build(folder, arguments.nights)
    now = datetime.now(UTC) + timedelta(days=1)
    config = retention.RetentionConfig(keep=arguments.keep, scores=True)
    planned = retention.prune(pristine, config, now=now, dry_run=True)
    kept = set(pristine.run_ids()) - set(planned.runs)
    (dataset,) = champion.currents(pristine)
    past = [each for each in champion.chain(pristine, dataset) if each in kept]
    counts.bytes_before, counts.bytes_said = size(pristine.root), planned.bytes
    counts.kept, counts.kept_although_old = len(kept), len(planned.kept)

    straight = Store(shutil.copytree(pristine.root, folder / "straight"))
    start = time.perf_counter()
    retention.prune(straight, config, now=now)
    counts.seconds = time.perf_counter() - start
    counts.bytes_after = size(straight.root)

    root = shutil.copytree(pristine.root, folder / "killed")
    store, turn = Store(root), 0
    while counts.kills < arguments.kills:
        point = POINTS[turn // 2 % len(POINTS)] if turn % 2 == 0 else None
        delay = chance.uniform(0, 1.2 * counts.seconds)
        outcome = kill_once(root, arguments.keep, now, point, delay)
        counts.kills += outcome != "ended"
        counts.at_points += outcome == "point"
        counts.unkilled += outcome == "ended"
        check(store, kept, counts)
        turn += 1
        if outcome == "ended" or not deletion.interrupted(store):  # nothing is left to be killed
            shutil.rmtree(root)
            shutil.copytree(pristine.root, root)
    retention.prune(store, config, now=now)
    if size(root) != counts.bytes_after:
        counts.trouble.append(f"{size(root)} bytes are left, expected {counts.bytes_after}")
    check(store, kept, counts)
    counts.jobs = (len(pristine.score_ids()), len(store.score_ids()))
    counts.datasets = tuple(len(deletion.dataset_names(each.root)) for each in (pristine, store))

    for run_id in sorted(kept):
        if rows_of(store, folder, run_id) == rows_of(pristine, folder, run_id):
            counts.scored += 1
        else:
            counts.trouble.append(f"run {run_id} scores in another way")
    for expected in past:
        if champion.rollback(store, ADA).run_id == expected:
            counts.rollbacks += 1
    ends = [nnbuild.retrain(None, each.root, resume=waiting).run_id for each in (store, pristine)]
    models = [file_digest(e.root / "runs" / waiting / "model.keras") for e in (store, pristine)]
    counts.resumed = ends == [waiting] * 2 and models[0] == models[1]
    return counts


def main() -> None:
    """Parse the options, run, and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nights", type=int, default=40)
    parser.add_argument("--keep", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = measure(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(asdict(counts)))
    else:
        for name, value in asdict(counts).items():
            print(f"{name:18} {value}")
    sys.exit(bool(counts.lost or counts.trouble))


if __name__ == "__main__":
    main()
