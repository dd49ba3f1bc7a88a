"""Where the processors' seconds of a scoring job go: each stage alone, on one thread, per million rows.

However well the stages overlap, a job takes at least their sum over the number of processors: that is the last line,
beside what inference alone would take. Give it the folder that `benchmarks/scoring.py --folder` has kept.

    python benchmarks/scoring_stages.py --folder DIR [--rows 1000000] [--network lab] [--repeat 3]
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

from nnbuild.engines import OnnxEngine
from nnbuild.logits import check_logits
from nnbuild.scoring.inputs import open_input
from nnbuild.scoring.shards import ROW_GROUP, counted, parquet_writer
from nnbuild.scoring.table import Batch, Columns, probability_table
from nnbuild.store.filesystem import file_digest, fsync_file

BATCH, EVERY, CLASSES, SHAPE = 4096, 8, 10, (28, 28, 1)
INFERENCE = "inference"


def table_of(rows: Batch, logits: Any) -> Any:
    """The rows of the output."""
    return probability_table(logits, rows.labels, example_ids=rows.example_ids)


def measure(source: Path, model: Path, aside: Path) -> dict[str, float]:
    """Processor seconds per million rows of every stage, one after the other, a row group of the output at a time."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        seconds[name] = seconds.get(name, 0) + time.process_time() - began
        return result

    opened, engine, rows, waiting = (
        open_input(str(source), Columns(), SHAPE),
        OnnxEngine(model, threads=1),
        0,
        [],
    )
    read = (piece for chunk in opened.chunks() for piece in opened.read(chunk, BATCH))
    first = next(read)
    with parquet_writer(aside, table_of(first, engine.logits(first.images)).schema) as file:
        while batch := timed("reading", lambda: next(read, None)):
            logits = timed(INFERENCE, lambda: engine.logits(batch.images))
            timed("is it logits", lambda: check_logits(logits, CLASSES, first_row=0))  # noqa: B023
            some = batch._replace(images=batch.images[::EVERY].copy())
            table = timed("softmax and columns", lambda: table_of(some, logits))  # noqa: B023
            timed("counting for drift", lambda: counted(some, table, CLASSES))  # noqa: B023
            waiting.append(table)
            rows += len(table)
            if len(waiting) == ROW_GROUP // BATCH:
                timed(
                    "writing",
                    lambda: file.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP),
                )
                waiting.clear()
    timed("flush and sha256", lambda: (fsync_file(aside), file_digest(aside)))
    return {name: spent / rows * 1e6 for name, spent in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of benchmarks/scoring.py")
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="as given to benchmarks/scoring.py"
    )
    parser.add_argument("--network", default="lab")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    run_id = json.loads((options.folder / "runs.json").read_text())[options.network]
    model = options.folder / "store" / "runs" / run_id / "model.onnx"
    with tempfile.TemporaryDirectory() as aside:
        source, target = options.folder / f"{options.rows}.parquet", Path(aside) / "scores.parquet"
        found = [measure(source, model, target) for _ in range(options.repeat)]
    spent = {name: statistics.median(each[name] for each in found) for name in found[0]}
    for name, seconds in spent.items():
        print(f"{options.network}, {name:20} {seconds:6.3f} processor seconds per million rows")
    processors = os.cpu_count() or 1
    least, alone = (each / processors for each in (sum(spent.values()), spent[INFERENCE]))
    print(
        f"{options.network}, on {processors} processors at least {least:.3f} s per million rows, inference alone "
        f"{alone:.3f} s: at most {alone / least:.2f} of its speed; {1e6 / least:,.0f} rows/s"
    )


if __name__ == "__main__":
    main()
