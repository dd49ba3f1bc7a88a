"""Measure the processor seconds of each stage of a scoring job, on one thread, per million rows.

    python benchmarks/scoring_stages.py --folder DIR [--rows 1000000] [--network lab] [--repeat 3]

However well the stages overlap, a job takes at least the sum of their seconds, divided by the
number of processors. The last line compares this bound with the time of inference alone. The folder
is the one of `benchmarks/scoring.py --folder`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.data.formats import open_stream
from nnbuild.data.streams import Batch, StreamOptions
from nnbuild.engines import OnnxEngine
from nnbuild.logits import check_logits
from nnbuild.scoring.batch import counted
from nnbuild.scoring.row_writer import ROW_GROUP, parquet_writer
from nnbuild.scoring.table import probability_table
from nnbuild.store.filesystem import file_digest, fsync_file

BATCH, EVERY, CLASSES, SHAPE = 4096, 8, 10, (28, 28, 1)
INFERENCE = "inference"


def table_of(rows: Batch, logits: Any) -> Any:
    """Return the output table of a batch."""
    return probability_table(logits, rows.labels, example_ids=rows.example_ids)


def write_row_group(file: pq.ParquetWriter, tables: list[pa.Table]) -> None:
    """Write tables as one row group."""
    file.write_table(pa.concat_tables(tables), row_group_size=ROW_GROUP)


def measure(source: Path, model: Path, target: Path) -> dict[str, float]:
    """Return the processor seconds of every stage per million rows.

    The stages run one after the other, and the output is written one row group at a time.

    Args:
        source: Input, a Parquet file.
        model: ONNX file.
        target: Path of the output.
    """
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start_time = time.process_time()
        result = function(*args, **kwargs)
        seconds[name] = seconds.get(name, 0) + time.process_time() - start_time
        return result

    opened, engine, rows, waiting = (
        open_stream(str(source), StreamOptions(SHAPE)),
        OnnxEngine(model, threads=1),
        0,
        [],
    )
    read = (piece for chunk in opened.chunks() for piece in opened.read(chunk, BATCH))
    first = next(read)
    with parquet_writer(target, table_of(first, engine.logits(first.images)).schema) as file:
        while batch := timed("reading", next, read, None):
            logits = timed(INFERENCE, engine.logits, batch.images)
            timed("check of logits", check_logits, logits, CLASSES, first_row=0)
            sample = batch._replace(images=batch.images[::EVERY].copy())
            table = timed("softmax and columns", table_of, sample, logits)
            timed("counting for drift", counted, sample, table, CLASSES)
            waiting.append(table)
            rows += len(table)
            if len(waiting) == ROW_GROUP // BATCH:
                timed("writing", write_row_group, file, waiting)
                waiting.clear()
    timed("flush and SHA-256", fsync_file, target)
    timed("flush and SHA-256", file_digest, target)
    return {name: total / rows * 1e6 for name, total in seconds.items()}


def main() -> None:
    """Print the median seconds of each stage, and the bound on the throughput."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder that benchmarks/scoring.py has kept"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1_000_000,
        help="rows of the input, as for benchmarks/scoring.py",
    )
    parser.add_argument("--network", default="lab", help="network to score with")
    parser.add_argument("--repeat", type=int, default=3, help="number of measurements")
    options = parser.parse_args()
    run_id = json.loads((options.folder / "runs.json").read_text())[options.network]
    model = options.folder / "store" / "runs" / run_id / "model.onnx"
    source = options.folder / f"{options.rows}.parquet"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "scores.parquet"
        repeats = [measure(source, model, target) for _ in range(options.repeat)]
    stages = {name: statistics.median(each[name] for each in repeats) for name in repeats[0]}
    for name, seconds in stages.items():
        print(f"{options.network}, {name:20} {seconds:6.3f} processor seconds per million rows")
    processors = os.cpu_count() or 1
    bound, alone = (each / processors for each in (sum(stages.values()), stages[INFERENCE]))
    print(
        f"{options.network}, on {processors} processors at least {bound:.3f} s per million rows, "
        f"inference alone {alone:.3f} s: at most {alone / bound:.2f} of its speed; "
        f"{1e6 / bound:,.0f} rows/s"
    )


if __name__ == "__main__":
    main()
