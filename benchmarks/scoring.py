"""Batch scoring against the usual script (pandas, predict, softmax, to_parquet), and against ONNX Runtime alone.

    python benchmarks/scoring.py [--rows 1000000] [--usual-rows 1000000] [--long-rows 0]

Each contestant is a process of its own, and is given the same file; what is printed comes from one run. The usual
script holds everything in memory: about 7 GB for a million rows.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USUAL = """
import os, sys; os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, pandas as pd, tensorflow as tf
model = keras.saving.load_model(sys.argv[1])
model.predict(np.zeros((32, 28, 28, 1), np.uint8), verbose=0)
import time; began = time.perf_counter()
frame = pd.read_parquet(sys.argv[2])
images = np.stack([np.frombuffer(each, np.uint8) for each in frame["image"]]).reshape(-1, 28, 28, 1)
probabilities = tf.nn.softmax(model.predict(images, verbose=0)).numpy()
table = pd.DataFrame(probabilities, columns=[f"prob_{k}" for k in range(10)])
table["predicted"] = probabilities.argmax(axis=1)
table["confidence"] = probabilities.max(axis=1)
table.to_parquet(sys.argv[3])
print("seconds", time.perf_counter() - began)
"""

OURS = """
import sys, time
import flows.commands.score
from nnbuild.scoring import jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.config import ScoreConfig
began = time.perf_counter()
job = jobs.open_job(ScoreConfig(input=sys.argv[2], model=sys.argv[1]), sys.argv[3])
with jobs.working_on(job):
    commit_job(job, jobs.score_input(job))
print("seconds", time.perf_counter() - began)
"""

ALONE = """
import sys, time
import numpy as np
from pathlib import Path
from nnbuild.engines import OnnxEngine
engine = OnnxEngine(Path(sys.argv[1]))
images = np.random.default_rng(0).integers(0, 256, (65536, 28, 28, 1), np.uint8)
rows, batch = int(sys.argv[2]), 4096
engine.logits(images[:batch])
began = time.perf_counter()
for start in range(0, rows, batch):
    first = start % len(images)
    engine.logits(images[first : first + batch])
print("seconds", time.perf_counter() - began)
"""


def measured(program: str, *arguments: object) -> tuple[float, float]:
    """Seconds that the program tells, and the most memory that it took, in MiB."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as run:
        told = run.stdout.read() if run.stdout else ""
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise SystemExit(f"a contestant failed with code {run.returncode}")
    return float(told.split()[-1]), used.ru_maxrss / 1024


def write_input(path: Path, rows: int) -> Path:
    """Images like handwriting: strokes on black, so that they compress as real ones do."""
    random = np.random.default_rng(0)
    strokes = np.zeros((4096, 28, 28), np.uint8)
    strokes[:, 4:24, 4:24] = random.integers(0, 256, (4096, 20, 20)) * (random.random((4096, 20, 20)) < 0.4)
    schema = pa.schema([pa.field("image", pa.binary(784))])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, 65_536):
            chosen = strokes[random.integers(0, 4096, min(65_536, rows - start))]
            pixels = pa.Array.from_buffers(
                pa.binary(784), len(chosen), [None, pa.py_buffer(np.ascontiguousarray(chosen))]
            )
            writer.write_table(pa.Table.from_arrays([pixels], schema=schema), row_group_size=16_384)
    return path


def trained(store: Path, model: str) -> str:
    """A run to score with; how good it is does not matter here."""
    command = [sys.executable, "-m", "flows.cli", "run", "--dataset", "digits", "--model", model, "--epochs", "1"]
    told = subprocess.run([*command, "--store", store, "--json"], check=True, capture_output=True, text=True).stdout
    return str(json.loads(told.splitlines()[-1])["run_id"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--usual-rows", type=int, default=1_000_000)
    parser.add_argument("--long-rows", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, rows = Path(folder) / "store", given.rows
        full = write_input(Path(folder) / "full.parquet", rows)
        few = write_input(Path(folder) / "few.parquet", given.usual_rows)
        for model, goal in (("lab", 12), ("convnet", 3)):
            run_id = trained(store, model)
            record = store / "runs" / run_id
            seconds, memory = measured(USUAL, record / "model.keras", few, Path(folder) / "usual.parquet")
            usual = given.usual_rows / seconds
            print(
                f"{model}: the usual script        {usual:10,.0f} rows/s  {memory:7,.0f} MiB  ({given.usual_rows:,} rows)"
            )
            alone_seconds, _ = measured(ALONE, record / "model.onnx", rows)
            alone = rows / alone_seconds
            print(f"{model}: ONNX Runtime alone      {alone:10,.0f} rows/s")
            ours_seconds, ours_memory = measured(OURS, run_id, full, store)
            ours = rows / ours_seconds
            print(f"{model}: nnbuild score           {ours:10,.0f} rows/s  {ours_memory:7,.0f} MiB  ({rows:,} rows)")
            print(
                f"{model}: times the usual script  {ours / usual:10.1f}  (goal {goal}), memory {ours_memory / memory:.2f} of it (goal 0.25)"
            )
            print(f"{model}: share of ONNX Runtime   {ours / alone:10.2f}  (goal 0.85)", flush=True)
            if given.long_rows:
                long = write_input(Path(folder) / "long.parquet", given.long_rows)
                began = time.perf_counter()
                long_seconds, long_memory = measured(OURS, run_id, long, store)
                cost = (long_seconds / given.long_rows) / (ours_seconds / rows)
                print(
                    f"{model}: {given.long_rows:,} rows: cost per row {cost:.2f}, memory {long_memory / ours_memory:.2f} of that at {rows:,} (goal 1.10); {time.perf_counter() - began:.0f} s",
                    flush=True,
                )
                long.unlink()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
