"""Measure what Prefect adds to a run: `nnbuild run` and `nnbuild.retrain`, which does not use it.

    python benchmarks/prefect_cost.py --data-dir DIR [--pairs 3] [--model lab] [--epochs 40]

Both do the same work, each in its own process. They take turns and are compared in pairs: first
with a running server, then with the embedded server. Processor seconds include those of the
embedded server, but not those of one that runs already. The last line shows how much time is saved
because the embedded server starts while TensorFlow is imported.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))
from real_server import ROOT, real_server

WITHOUT_PREFECT = """
import sys, nnbuild
folder, model, epochs, store = sys.argv[1:]
settings = {
    "dataset": {"data_dir": folder},
    "model": {"name": model},
    "training": {"epochs": int(epochs)},
}
nnbuild.retrain(nnbuild.RunConfig.model_validate(settings), store)
"""
PARTS = ("server", "embedded", "starts")
GOALS = {
    "server running": "goal for 40 epochs: at most 2 s and ratio 1.05",
    "embedded server": "goal for lab, 2 epochs: at most 1.35, 1.60 and 6 s",
}
SERVER = "from flows.embedded_server import EmbeddedServer\nwith EmbeddedServer(): pass"
IMPORTS = "import prefect.client.orchestration, flows.retrain, nnbuild.runtime.tensorflow"
BOTH = """
from flows.embedded_server import EmbeddedServer
with EmbeddedServer(): import flows.retrain, nnbuild.runtime.tensorflow
"""


@dataclass(frozen=True)
class Cost:
    """Cost of a process and of the processes that it started.

    Attributes:
        wall: Seconds from its start to its end.
        processor: Processor seconds, user and system.
        first_epoch: Seconds from its start to its first line about an epoch; None without such a
            line.
    """

    wall: float
    processor: float
    first_epoch: float | None


def run_python(environment: Mapping[str, str], *arguments: str) -> Cost:
    """Run Python with some arguments, and return what it cost."""
    start_time = time.perf_counter()
    first_epoch = None
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    with process.stdout:
        for line in process.stdout:
            if first_epoch is None and line.startswith("epoch "):
                first_epoch = time.perf_counter() - start_time
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{arguments} ended with status {os.waitstatus_to_exitcode(status)}")
    wall = time.perf_counter() - start_time
    return Cost(wall, usage.ru_utime + usage.ru_stime, first_epoch)


def compare(
    what: str, environment: Mapping[str, str], options: argparse.Namespace, folder: str
) -> None:
    """Compare runs with and without Prefect; print each pair, and the medians.

    Args:
        what: Kind of server, for the printed lines.
        environment: Environment of the processes, which decides on the server.
        options: Options of this program.
        folder: Folder for the two stores.
    """
    data_dir, model, epochs = options.data_dir, options.model, str(options.epochs)
    settings = ["--data-dir", data_dir, "--model", model, "--epochs", epochs]
    run = ["-m", "flows.cli.main", "run", *settings, "--store", f"{folder}/with"]
    without = ["-c", WITHOUT_PREFECT, data_dir, model, epochs, f"{folder}/without"]
    for first in (run, without):  # the first runs create a database and ingest the data
        run_python(environment, *first)
    pairs = []
    for pair in range(1, options.pairs + 1):
        order = (run, without) if pair % 2 else (without, run)
        costs = {command is run: run_python(environment, *command) for command in order}
        pairs.append((costs[True], costs[False]))
        print(
            f"{what}, pair {pair}: with Prefect {_describe(costs[True])}, "
            f"without {_describe(costs[False])}",
            flush=True,
        )
    _print_medians(what, pairs)


def _describe(cost: Cost) -> str:
    epoch = f", first epoch after {cost.first_epoch:.1f} s" if cost.first_epoch else ""
    return f"{cost.wall:.1f} s (processor {cost.processor:.1f} s{epoch})"


def _print_medians(what: str, pairs: Sequence[tuple[Cost, Cost]]) -> None:
    """Print medians over the pairs of a run with Prefect and one without."""
    difference, wall, processor = (
        statistics.median(values)
        for values in zip(
            *((a.wall - b.wall, a.wall / b.wall, a.processor / b.processor) for a, b in pairs),
            strict=True,
        )
    )
    epoch = statistics.median(each.first_epoch or 0.0 for each, _ in pairs)
    print(
        f"{what}, medians of {len(pairs)} pairs: {difference:+.1f} s, ratio {wall:.2f}, "
        f"ratio of processor seconds {processor:.2f}, first epoch after {epoch:.1f} s "
        f"({GOALS[what]})"
    )


def time_start(environment: Mapping[str, str], times: int) -> None:
    """Print how long the embedded server and the imports take, separately and in parallel."""
    server, imports, both = (
        statistics.median(run_python(environment, "-c", program).wall for _ in range(times))
        for program in (SERVER, IMPORTS, BOTH)
    )
    print(
        f"start of the embedded server {server:.1f} s, "
        f"imports of Prefect and TensorFlow {imports:.1f} s, both in parallel {both:.1f} s"
    )


def main() -> None:
    """Measure the requested parts, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's IDX files",
    )
    parser.add_argument("--pairs", type=int, default=3, help="number of pairs of processes")
    parser.add_argument("--model", default="lab", help="network to train")
    parser.add_argument("--epochs", type=int, default=40, help="epochs per run")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; all by default"
    )
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("no folder with MNIST: use --data-dir, or set NNBUILD_DATA_DIR")
    # Otherwise each process would compile nnbuild again, unlike those of a user.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "prefect"
        home.mkdir()
        with real_server(home, {}) as server:
            if "server" in options.parts:
                compare("server running", server.environment, options, folder)
        # Without the server, which would take part of the processor.
        embedded = {
            name: value for name, value in server.environment.items() if name != "PREFECT_API_URL"
        }
        if "embedded" in options.parts:
            compare("embedded server", embedded, options, folder)
        if "starts" in options.parts:
            time_start(embedded, options.pairs)


if __name__ == "__main__":
    main()
