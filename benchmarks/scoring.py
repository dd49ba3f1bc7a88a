"""Measure the throughput of batch scoring.

    python benchmarks/scoring.py --data-dir DIR [--rows 1000000] [--big-rows 10000000] [--pairs 3]

The input is MNIST, repeated with noise, as Parquet. Every measurement is a new process. Processes
that are compared take turns, and a ratio is the median over the pairs. Seconds exclude the imports;
memory is the peak of the process. The parts are:

- `start`: a whole process with a thousand rows, imports and commit included
- `usual`: `nnbuild score` compared with a script of pandas and Keras's `predict`
- `alone`: `nnbuild score` compared with ONNX Runtime on images in memory
- `dask`: two Dask workers compared with one
- `big`: ten times the rows
- `memory`: `nnbuild score --threads 8` compared with 2, on `--big-rows` raw images, `--rows` PNGs
  in Parquet and a folder of `--files` PNGs, or on those of them that `--forms` names. The seconds
  are those of the whole command. The memory is the sum of the proportional set sizes (PSS) of its
  processes, in which shared pages count once. The command believes that there are eight cores.

To measure in several short sessions, `--folder DIR` keeps the networks and inputs, `--parts none`
only creates them, and `--parts usual --networks lab` measures one part of one network.
"""

import argparse
import io
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
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scoring_scale import PeakMemory

from nnbuild.data.dataset import Split
from nnbuild.data.sources import load
from nnbuild.data.split_table import split_table
from nnbuild.runtime.environment import cache_folder
from nnbuild.store import Store

ROWS_PER_GROUP = 65_536
NETWORKS = ("lab", "convnet")
FEW = 1000
PARTS = ("start", "usual", "alone", "dask", "big", "memory")
FORMS = ("raw", "png", "folder")
THREADS = (8, 2)

TRAIN = """
import sys
import nnbuild
network, epochs, data_dir, store = sys.argv[1:]
settings = {
    "dataset": {"data_dir": data_dir},
    "model": {"name": network},
    "training": {"epochs": int(epochs)},
}
print(nnbuild.retrain(nnbuild.RunConfig.model_validate(settings), store).run_id)
"""

USUAL = """
import json, sys, time
import numpy as np, pandas as pd, tensorflow as tf, keras
source, model, target = sys.argv[1:]
model = keras.models.load_model(model)
start_time = time.perf_counter()
frame = pd.read_parquet(source)
images = np.stack([np.frombuffer(each, np.uint8) for each in frame["image"]])
images = images.reshape(-1, *model.input_shape[1:])
probabilities = tf.nn.softmax(model.predict(images, verbose=0)).numpy()
scores = pd.DataFrame(probabilities, columns=[f"prob_{k}" for k in range(10)])
scores.insert(0, "confidence", probabilities.max(axis=1))
scores.insert(0, "predicted", probabilities.argmax(axis=1))
scores.to_parquet(target)
print(json.dumps({"seconds": time.perf_counter() - start_time}))
"""

ALONE = """
import json, sys, time
from nnbuild.data.split_table import fixed_pixels
from nnbuild.engines import OnnxEngine
from pathlib import Path
import pyarrow.parquet as pq
source, model, rows = sys.argv[1:]
table = pq.ParquetFile(source).read_row_group(0, columns=["image"])
images = fixed_pixels(table["image"]).reshape(-1, 28, 28, 1)
engine, batch, done = OnnxEngine(Path(model).read_bytes()), 4096, 0
engine.logits(images[:batch])
start_time = time.perf_counter()
while done < int(rows):
    for start in range(0, len(images), batch):
        engine.logits(images[start : start + batch])
    done += len(images)
print(json.dumps({"seconds": (time.perf_counter() - start_time) * int(rows) / done}))
"""

SCORE = """
import sys
from nnbuild.runtime import environment
environment.processors = lambda: 8
from flows.cli.main import main
main(["score", *sys.argv[1:]])
"""


class Cost(NamedTuple):
    """Seconds and peak memory of a process."""

    seconds: float
    megabytes: float


def measure_command(*command: str) -> Cost:
    """Run a command whose last line of output is JSON with `seconds`, and return its cost."""
    with (
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(command[:3])} exited with code {process.returncode}")
        out.seek(0)
        seconds = json.loads(out.read().splitlines()[-1])["seconds"]
    return Cost(seconds if isinstance(seconds, float) else seconds["whole"], usage.ru_maxrss / 1024)


def measure_family(*command: str) -> Cost:
    """Run a command, and return its seconds and the peak memory of all of its processes."""
    start_time = time.perf_counter()
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        PeakMemory(process.pid) as memory,
    ):
        code = process.wait()
    if code:
        sys.exit(f"{' '.join(command[3:])} exited with code {code}")
    return Cost(time.perf_counter() - start_time, memory.peak / 1e6)


def write_input(path: Path, data_dir: str, rows: int) -> None:
    """Write images of MNIST with noise to a Parquet file, one row group at a time.

    Args:
        path: Path of the file.
        data_dir: Folder with MNIST.
        rows: Number of images.
    """
    train = load("mnist", data_dir=Path(data_dir), cache=cache_folder()).train
    random, writer = np.random.default_rng(0), None
    for start in range(0, rows, ROWS_PER_GROUP):
        indices = np.arange(start, min(start + ROWS_PER_GROUP, rows)) % len(train)
        images = train.images[indices]
        images ^= random.integers(0, 8, images.shape, np.uint8)
        table = split_table(Split(images, train.labels[indices]))
        writer = writer or pq.ParquetWriter(
            path, table.schema, compression="zstd", use_dictionary=False
        )
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    writer.close()


def write_pictures(path: Path, data_dir: str, rows: int) -> None:
    """Write images of MNIST as PNGs, again and again: to a Parquet file, or else to a folder."""
    train = load("mnist", data_dir=Path(data_dir), cache=cache_folder()).train
    pictures = [png(image) for image in train.images[:rows, :, :, 0]]
    if path.suffix != ".parquet":
        path.mkdir()
        for row in range(rows):
            (path / f"{row:07}.png").write_bytes(pictures[row % len(pictures)])
        return
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, ROWS_PER_GROUP):
            group = range(start, min(start + ROWS_PER_GROUP, rows))
            images = [pictures[row % len(pictures)] for row in group]
            writer.write_table(pa.table([pa.array(images, pa.binary())], schema=schema))


def png(image: np.ndarray) -> bytes:
    """Return a grayscale image as a PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_input_in_child(path: Path, data_dir: str, rows: int, form: str = "raw") -> None:
    """Write an input in a child process, to keep the memory of this process small.

    The peak memory that the kernel reports for a process is at least what its parent used when it
    started the process.
    """
    arguments = ["--data-dir", data_dir, "--rows", str(rows), "--write", str(path), "--forms", form]
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def print_ratios(name: str, first: list[Cost], second: list[Cost], rows: tuple[int, int]) -> None:
    """Print the throughput and memory of both sides, and the medians of their ratios.

    Args:
        name: Description of the comparison.
        first: Costs of one side, one per pair.
        second: Costs of the other side, one per pair.
        rows: Number of rows that each side scored.
    """
    rates = [
        statistics.median(count / each.seconds for each in costs)
        for count, costs in zip(rows, (first, second), strict=True)
    ]
    memory = [statistics.median(each.megabytes for each in costs) for costs in (first, second)]
    faster = statistics.median(
        rows[0] / a.seconds / (rows[1] / b.seconds) for a, b in zip(first, second, strict=True)
    )
    print(
        f"{name}: {rates[0]:,.0f} vs. {rates[1]:,.0f} rows/s, ratio {faster:.2f}; "
        f"{memory[0]:,.0f} vs. {memory[1]:,.0f} MB, ratio {memory[0] / memory[1]:.2f}",
        flush=True,
    )


class Bench:
    """The commands to measure, and the folder with their networks and inputs."""

    def __init__(self, folder: Path, data_dir: str, epochs: int) -> None:
        self.folder, self.store, self._data_dir = folder, str(folder / "store"), data_dir
        self._nnbuild = str(Path(sys.executable).with_name("nnbuild"))
        known = folder / "runs.json"
        self.runs = json.loads(known.read_text()) if known.exists() else {}
        for network in (each for each in NETWORKS if each not in self.runs):
            arguments = [network, str(epochs), data_dir, self.store]
            command = [sys.executable, "-c", TRAIN, *arguments]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            self.runs[network] = done.stdout.splitlines()[-1]
            known.write_text(json.dumps(self.runs))

    def input(self, rows: int, form: str = "raw") -> str:
        """Return the path of an input of `rows` images; create it if it does not exist."""
        names = {"raw": f"{rows}.parquet", "png": f"png-{rows}.parquet", "folder": f"png-{rows}"}
        path = self.folder / names[form]
        if not path.exists():
            write_input_in_child(path, self._data_dir, rows, form)
        return str(path)

    def model(self, network: str, kind: str) -> str:
        """Return the path of a network's model file of a kind, "keras" or "onnx"."""
        return str(Store(self.store).root / "runs" / self.runs[network] / f"model.{kind}")

    def ours(self, network: str, source: str, *options: str) -> Cost:
        """Measure `nnbuild score`, and delete the scores."""
        arguments = self._arguments(network, source, *options)
        cost = measure_command(self._nnbuild, "score", *arguments)
        self._delete_scores()
        return cost

    def memory(self, network: str, source: str, threads: int) -> Cost:
        """Measure all processes of `nnbuild score` on some cores, and delete the scores."""
        arguments = self._arguments(network, source, "--threads", str(threads))
        cost = measure_family(sys.executable, "-c", SCORE, *arguments)
        self._delete_scores()
        return cost

    def _arguments(self, network: str, source: str, *options: str) -> list[str]:
        known = ["--input", source, "--model", self.runs[network], "--store", self.store]
        return [*known, "--json", *options]

    def _delete_scores(self) -> None:
        for path in (Path(self.store) / "tables" / "scores").rglob("*.parquet"):
            path.unlink()

    def start(self, network: str) -> float:
        """Return the seconds of a whole `nnbuild score` of a few rows."""
        source, start_time = self.input(FEW), time.perf_counter()
        self.ours(network, source)
        return time.perf_counter() - start_time

    def usual(self, network: str, source: str) -> Cost:
        """Measure the usual script."""
        return measure_command(
            sys.executable,
            "-c",
            USUAL,
            source,
            self.model(network, "keras"),
            str(self.folder / "usual.parquet"),
        )

    def alone(self, network: str, source: str, rows: int) -> Cost:
        """Measure ONNX Runtime on images in memory."""
        model = self.model(network, "onnx")
        return measure_command(sys.executable, "-c", ALONE, source, model, str(rows))

    def on_dask(self, network: str, source: str, workers: int) -> Cost:
        """Measure `nnbuild score` on a Dask cluster of workers with one thread each.

        The memory is that of the command, not of the workers.
        """
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
    """Measure the requested parts, and print the results."""
    rows, big = options.rows, options.big_rows

    def compare(
        name: str, first: Callable[[], Cost], second: Callable[[], Cost], counts: tuple[int, int]
    ) -> None:
        pairs = [(first(), second()) for _ in range(options.pairs)]
        print_ratios(name, [each for each, _ in pairs], [each for _, each in pairs], counts)

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
            usual = partial(bench.usual, network, source)
            compare(f"{ours} vs. the usual script", score, usual, (rows, rows))
        if "alone" in options.parts:
            alone = partial(bench.alone, network, source, rows)
            compare(f"{ours} vs. ONNX Runtime alone", score, alone, (rows, rows))
        if "dask" in options.parts:
            two, one = (partial(bench.on_dask, network, source, workers) for workers in (2, 1))
            compare(f"{network}, two Dask workers vs. one", two, one, (rows, rows))
        if "big" in options.parts and big:
            large = partial(bench.ours, network, bench.input(big))
            compare(f"{network}, {big:,} rows vs. {rows:,}", large, score, (big, rows))
        if "memory" in options.parts:
            measure_memory(bench, network, options)


def measure_memory(bench: Bench, network: str, options: argparse.Namespace) -> None:
    """Compare the memory of jobs on eight cores with that on two, for each form of the input."""
    counts = dict(zip(FORMS, (options.big_rows, options.rows, options.files), strict=True))
    for form in options.forms:
        rows = counts[form]
        source = bench.input(rows, form)
        costs = [
            [bench.memory(network, source, threads) for threads in THREADS]
            for _ in range(options.pairs)
        ]
        eight, two = (list(each) for each in zip(*costs, strict=True))
        name = f"{network}, {rows:,} rows, {form}, 8 threads vs. 2"
        print_ratios(name, eight, two, (rows, rows))


def main() -> None:
    """Create the networks and inputs, and measure the requested parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's gzipped IDX files",
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows per job")
    parser.add_argument(
        "--big-rows", type=int, default=10_000_000, help="rows of the part big; 0 skips it"
    )
    parser.add_argument(
        "--files", type=int, default=60_000, help="files in the folder of the part memory"
    )
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=FORMS, help="inputs of the part memory"
    )
    parser.add_argument("--pairs", type=int, default=3, help="number of pairs of processes")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the two networks")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=(*PARTS, "none"),
        default=PARTS,
        help="what to measure; all by default",
    )
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="networks to score with"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder that keeps the networks and inputs; a temporary one by default",
    )
    parser.add_argument("--write", type=Path, help="only write an input to this path")
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("no folder with MNIST: use --data-dir, or set NNBUILD_DATA_DIR")
    if options.write:
        write = write_input if options.forms[0] == "raw" else write_pictures
        write(options.write, options.data_dir, options.rows)
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
