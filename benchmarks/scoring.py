"""Batch scoring beside the usual script, beside ONNX Runtime alone, at ten times the rows, and on two Dask workers.

The input is MNIST, repeated with noise, as Parquet. Every measurement is a new process; those that are compared take
turns, and a ratio is the median over the pairs. Seconds are counted without the imports, memory is the process's peak.
The part `start` is a whole process with a thousand rows, imports and commit included.

    python benchmarks/scoring.py --data-dir DIR [--rows 1000000] [--big-rows 10000000] [--pairs 3]

In pieces, for a machine that is quiet for minutes only: `--folder DIR` keeps the networks and the inputs, `--parts none`
only makes them, and `--parts usual --networks lab` measures one thing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from nnbuild.data.dataset import Split
from nnbuild.data.sources import default_cache, load
from nnbuild.data.tables import split_table
from nnbuild.store import Store

ROWS_PER_GROUP = 65_536
NETWORKS = ("lab", "convnet")
FEW = 1000
PARTS = ("start", "usual", "alone", "dask", "big")

TRAIN = """
import sys
import nnbuild
network, epochs, data_dir, store = sys.argv[1:]
settings = {"dataset": {"data_dir": data_dir}, "model": {"name": network}, "training": {"epochs": int(epochs)}}
print(nnbuild.retrain(nnbuild.RunConfig.model_validate(settings), store).run_id)
"""

USUAL = """
import json, sys, time
import numpy as np, pandas as pd, tensorflow as tf, keras
source, model, target = sys.argv[1:]
model = keras.models.load_model(model)
began = time.perf_counter()
frame = pd.read_parquet(source)
images = np.stack([np.frombuffer(each, np.uint8) for each in frame["image"]]).reshape(-1, *model.input_shape[1:])
probabilities = tf.nn.softmax(model.predict(images, verbose=0)).numpy()
scores = pd.DataFrame(probabilities, columns=[f"prob_{k}" for k in range(10)])
scores.insert(0, "confidence", probabilities.max(axis=1))
scores.insert(0, "predicted", probabilities.argmax(axis=1))
scores.to_parquet(target)
print(json.dumps({"seconds": time.perf_counter() - began}))
"""

ALONE = """
import json, sys, time
from nnbuild.data.tables import fixed_pixels
from nnbuild.engines import OnnxEngine
from pathlib import Path
import pyarrow.parquet as pq
source, model, rows = sys.argv[1:]
table = pq.ParquetFile(source).read_row_group(0, columns=["image"])
images = fixed_pixels(table["image"]).reshape(-1, 28, 28, 1)
engine, batch, done = OnnxEngine(Path(model).read_bytes()), 4096, 0
engine.logits(images[:batch])
began = time.perf_counter()
while done < int(rows):
    for start in range(0, len(images), batch):
        engine.logits(images[start : start + batch])
    done += len(images)
print(json.dumps({"seconds": (time.perf_counter() - began) * int(rows) / done}))
"""


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    megabytes: float


def cost(*command: str) -> Cost:
    """Run a process whose last line is JSON with `seconds`."""
    with (
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{command[:3]} exited with {process.returncode}")
        out.seek(0)
        seconds = json.loads(out.read().splitlines()[-1])["seconds"]
    return Cost(seconds if isinstance(seconds, float) else seconds["whole"], usage.ru_maxrss / 1024)


def write_input(path: Path, data_dir: str, rows: int) -> None:
    """Write so many images of MNIST with noise, a row group at a time."""
    train = load("mnist", data_dir=Path(data_dir), cache=default_cache()).train
    random, writer = np.random.default_rng(0), None
    for start in range(0, rows, ROWS_PER_GROUP):
        some = np.arange(start, min(start + ROWS_PER_GROUP, rows)) % len(train)
        images = train.images[some]
        images ^= random.integers(0, 8, images.shape, np.uint8)
        table = split_table(Split(images, train.labels[some]))
        writer = writer or pq.ParquetWriter(
            path, table.schema, compression="zstd", use_dictionary=False
        )
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    writer.close()


def written(path: Path, data_dir: str, rows: int) -> str:
    """The same in a process of its own: a child's peak memory is never told below what its parent held at its start."""
    subprocess.run(
        [
            sys.executable,
            __file__,
            "--data-dir",
            data_dir,
            "--rows",
            str(rows),
            "--write",
            str(path),
        ],
        check=True,
    )
    return str(path)


def ratios(name: str, first: list[Cost], second: list[Cost], rows: tuple[int, int]) -> None:
    """Print rows per second of both, and the medians of the pairs' ratios."""
    rate = [
        statistics.median(count / each.seconds for each in costs)
        for count, costs in zip(rows, (first, second), strict=True)
    ]
    memory = [statistics.median(each.megabytes for each in costs) for costs in (first, second)]
    faster = statistics.median(
        rows[0] / a.seconds / (rows[1] / b.seconds) for a, b in zip(first, second, strict=True)
    )
    print(
        f"{name}: {rate[0]:,.0f} against {rate[1]:,.0f} rows/s, {faster:.2f} times; "
        f"{memory[0]:,.0f} against {memory[1]:,.0f} MB, {memory[0] / memory[1]:.2f} times",
        flush=True,
    )


class Bench:
    """The commands, and the folder that they work in."""

    def __init__(self, folder: Path, data_dir: str, epochs: int) -> None:
        self.folder, self.store, self._data_dir = folder, str(folder / "store"), data_dir
        self._nnbuild = str(Path(sys.executable).with_name("nnbuild"))
        known = folder / "runs.json"
        self.runs = json.loads(known.read_text()) if known.exists() else {}
        for network in (each for each in NETWORKS if each not in self.runs):
            arguments = [network, str(epochs), data_dir, self.store]
            told = subprocess.run(
                [sys.executable, "-c", TRAIN, *arguments],
                check=True,
                capture_output=True,
                text=True,
            )
            self.runs[network] = told.stdout.splitlines()[-1]
            known.write_text(json.dumps(self.runs))

    def input(self, rows: int) -> str:
        """A file of so many images; made if it is not there."""
        path = self.folder / f"{rows}.parquet"
        return str(path) if path.exists() else written(path, self._data_dir, rows)

    def model(self, network: str, kind: str) -> str:
        """The path of a network's model file."""
        return str(Store(self.store).root / "runs" / self.runs[network] / f"model.{kind}")

    def ours(self, network: str, source: str, *options: str) -> Cost:
        """What `nnbuild score` takes."""
        base = [
            self._nnbuild,
            "score",
            "--input",
            source,
            "--model",
            self.runs[network],
            "--store",
            self.store,
            "--json",
        ]
        found = cost(*base, *options)
        for path in (Path(self.store) / "tables" / "scores").rglob("*.parquet"):
            path.unlink()
        return found

    def start(self, network: str) -> float:
        """Seconds of a whole `nnbuild score` of few rows."""
        source, began = self.input(FEW), time.perf_counter()
        self.ours(network, source)
        return time.perf_counter() - began

    def usual(self, network: str, source: str) -> Cost:
        """What the usual script takes."""
        return cost(
            sys.executable,
            "-c",
            USUAL,
            source,
            self.model(network, "keras"),
            str(self.folder / "usual.parquet"),
        )

    def alone(self, network: str, source: str, rows: int) -> Cost:
        """What ONNX Runtime takes for images in the memory."""
        return cost(sys.executable, "-c", ALONE, source, self.model(network, "onnx"), str(rows))

    def on_dask(self, network: str, source: str, workers: int) -> Cost:
        """What `nnbuild score` takes on a cluster of so many workers of one thread; of this process, not of theirs."""
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50
            ) as cluster,
            Client(cluster) as client,
        ):
            client.wait_for_workers(workers)
            return self.ours(
                network, source, "--runner", "dask", "--address", cluster.scheduler_address
            )


def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Measure the parts that were asked for."""
    rows, big = options.rows, options.big_rows

    def compared(
        name: str, first: Callable[[], Cost], second: Callable[[], Cost], of: tuple[int, int]
    ) -> None:
        turns = [(first(), second()) for _ in range(options.pairs)]
        ratios(name, [each for each, _ in turns], [each for _, each in turns], of)

    print(
        f"{rows:,} rows, {os.cpu_count()} processors, medians of {options.pairs} pairs", flush=True
    )
    for network in options.networks:
        source, ours = bench.input(rows), f"{network}, nnbuild score"
        score = partial(bench.ours, network, source)
        if "start" in options.parts:
            whole = statistics.median(bench.start(network) for _ in range(options.pairs))
            print(f"{ours}, a whole process with {FEW:,} rows: {whole:.2f} s", flush=True)
        if "usual" in options.parts:
            compared(
                f"{ours} against the usual script",
                score,
                partial(bench.usual, network, source),
                (rows, rows),
            )
        if "alone" in options.parts:
            alone = partial(bench.alone, network, source, rows)
            compared(f"{ours} against ONNX Runtime alone", score, alone, (rows, rows))
        if "dask" in options.parts:
            two, one = (partial(bench.on_dask, network, source, workers) for workers in (2, 1))
            compared(f"{network}, two Dask workers against one", two, one, (rows, rows))
        if "big" in options.parts and big:
            large = partial(bench.ours, network, bench.input(big))
            compared(f"{network}, {big:,} rows against {rows:,}", large, score, (big, rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's gzipped IDX files",
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--big-rows", type=int, default=10_000_000, help="0 leaves it out")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, default=1, help="of the two runs that are scored with"
    )
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "none"), default=PARTS)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument(
        "--folder", type=Path, help="keeps what is made; a temporary one if not given"
    )
    parser.add_argument("--write", type=Path, help="only write the input there")
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
    if options.write:
        write_input(options.write, options.data_dir, options.rows)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, options.data_dir, options.epochs)
        bench.input(options.rows)
        if "none" not in options.parts:
            measure(bench, options)
        elif options.big_rows:
            bench.input(options.big_rows)


if __name__ == "__main__":
    main()
