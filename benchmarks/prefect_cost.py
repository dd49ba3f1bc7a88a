"""Measure what Prefect adds to a run: `nnbuild run` and `nnbuild.retrain`, which does not use it.

    python benchmarks/prefect_cost.py --data-dir DIR [--pairs 3] [--model lab] [--epochs 40]

Both do the same work, each in its own process. They take turns and are compared in pairs: first
with a running server, then with the embedded server. The last line shows how much time is saved
because the embedded server starts while TensorFlow is imported.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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
SERVER = "from flows.embedded_server import EmbeddedServer\nwith EmbeddedServer(): pass"
IMPORTS = "import prefect.client.orchestration, flows.retrain, nnbuild.runtime.tensorflow"
BOTH = """
from flows.embedded_server import EmbeddedServer
with EmbeddedServer(): import flows.retrain, nnbuild.runtime.tensorflow
"""


def time_python(environment: Mapping[str, str], *arguments: str) -> float:
    """Run Python with some arguments, and return the seconds of the whole process."""
    start_time = time.perf_counter()
    command = [sys.executable, *arguments]
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,
    )
    return time.perf_counter() - start_time


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
    run = ["-m", "flows.cli.main", "run", *settings, "--store", f"{folder}/with", "--json"]
    without = ["-c", WITHOUT_PREFECT, data_dir, model, epochs, f"{folder}/without"]
    for first in (run, without):  # the first runs create a database and ingest the data
        time_python(environment, *first)
    differences, ratios = [], []
    for pair in range(1, options.pairs + 1):
        order = (run, without) if pair % 2 else (without, run)
        seconds = {command is run: time_python(environment, *command) for command in order}
        differences.append(seconds[True] - seconds[False])
        ratios.append(seconds[True] / seconds[False])
        print(
            f"{what}, pair {pair}: {seconds[True]:.1f} s with Prefect, "
            f"{seconds[False]:.1f} s without",
            flush=True,
        )
    print(
        f"{what}, median of {options.pairs} pairs: {statistics.median(differences):+.1f} s, "
        f"{100 * (statistics.median(ratios) - 1):+.1f} % (goal with a server: at most 2 s and 5 %)"
    )


def time_start(environment: Mapping[str, str], times: int) -> None:
    """Print how long the embedded server and the imports take, separately and in parallel."""
    server, imports, both = (
        statistics.median(time_python(environment, "-c", program) for _ in range(times))
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
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "prefect"
        home.mkdir()
        with real_server(home, {}) as server:
            if "server" in options.parts:
                compare("server running", server.environment, options, folder)
        embedded = {
            name: value for name, value in server.environment.items() if name != "PREFECT_API_URL"
        }
        if "embedded" in options.parts:
            compare("embedded server", embedded, options, folder)
        if "starts" in options.parts:
            time_start(embedded, options.pairs)


if __name__ == "__main__":
    main()
