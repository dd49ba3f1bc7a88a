"""Measure `nnbuild label` and `nnbuild live` at scale: seconds and memory.

    python benchmarks/labels_scale.py [--labels 1000000] [--rows 10000000]

The rows of one scoring job are repeated, with new IDs, until the table `scores` has enough; then
labels are added and live accuracy is computed, each in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import retrain
from nnbuild.store import Store, schemas
from nnbuild.store.ids import new_run_id
from nnbuild.store.tables import write_table

_JOB_ROWS = 1_000_000
_GROUP = 65_536


def repeated_jobs(store: Store, run_id: str, rows: int) -> None:
    """Write scoring jobs of a million rows each, one a day, with the run's own predictions."""
    source = store.read_table("predictions", run_id).drop_columns("run_id")
    digest = "0" * 64
    first = datetime(2026, 1, 1, 5, tzinfo=UTC)
    for number, start in enumerate(range(0, rows, _JOB_ROWS)):
        count = min(_JOB_ROWS, rows - start)
        took = pa.array(np.arange(start, start + count) % len(source))
        ids = pa.array(np.arange(start, start + count), pa.int64())
        table = source.take(took).set_column(0, "example_id", ids)
        began = first + timedelta(days=number)
        score_id = new_run_id(began)
        folder = store.root / "tables" / "scores" / f"score_id={score_id}"
        folder.mkdir(parents=True)
        schema = schemas.predictions(10)
        pq.write_table(
            table.cast(schema),
            folder / "part-00000.parquet",
            row_group_size=_GROUP,
            compression={each: "none" if "prob_" in each else "zstd" for each in schema.names},
            use_dictionary=False,
        )
        row = {
            "run_id": run_id,
            "model_digest": digest,
            "input": f"day-{number}",
            "output": None,
            "rows": count,
            "written": count,
            "quarantined": 0,
            "engine": "onnx",
            "temperature": 1.0,
            "started_at": began,
            "finished_at": began,
            "day": began.date(),
            "identifier": "integer",
            "input_digest": f"{number:064d}",
            "shadow_run_id": None,
        }
        part = store.root / "tables" / "score_jobs" / f"score_id={score_id}" / "part-0.parquet"
        part.parent.mkdir(parents=True)
        write_table(part, schemas.table_of(schemas.SCORE_JOBS, [row]), schemas.SCORE_JOBS)


# In a small process of its own: the peak of a child includes that of the process it is forked from.
_MEASURE = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
values = [time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]
print(json.dumps([*values, done.stdout.splitlines()[-1]]))
"""


def timed(command: list[str]) -> tuple[float, float, float, str]:
    """Run `nnbuild`; return seconds, those of all processors, peak MB, and its last line."""
    program = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "flows.cli.main", *command]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    seconds, processor, memory, last = json.loads(done.stdout)
    return seconds, processor, memory, last


def main() -> None:
    """Print a Markdown table of seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        config = RunConfig.model_validate(
            {"dataset": {"name": "mnist"}, "model": {"name": "lab"}, "training": {"epochs": 1}}
        )
        run_id = retrain(config, store.root).run_id
        repeated_jobs(store, run_id, options.rows)
        ids = np.random.default_rng(0).permutation(options.rows)[: options.labels]
        truth = store.read_table("predictions", run_id)["label"].to_numpy()
        labels = pa.table({"example_id": ids, "label": truth[ids % len(truth)]})
        path = Path(folder) / "labels.parquet"
        pq.write_table(labels, path)
        at = ["--store", str(store.root), "--json"]
        print("| command | seconds | processor seconds | peak memory |\n| --- | --- | --- | --- |")
        for name, command in {
            f"`label`, {options.labels:,} labels": ["label", "--input", str(path), *at],
            f"`live`, {options.rows:,} rows": ["live", *at],
        }.items():
            seconds, processor, memory, last = timed(command)
            print(f"| {name} | {seconds:.1f} | {processor:.1f} | {memory:.0f} MB |", flush=True)
            print(last[:300], file=sys.stderr)


if __name__ == "__main__":
    main()
