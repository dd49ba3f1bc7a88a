"""What Prefect adds to a run: `nnbuild run` beside `nnbuild.retrain`, which does the same work without it.

Each is a process of its own; they take turns, and what is compared is compared pair by pair: with a server that is
running, then with the embedded one. The last lines tell what it is worth that the embedded server starts while
TensorFlow is imported.

    python benchmarks/prefect_cost.py --data-dir DIR [--pairs 3] [--model lab] [--epochs 40]
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

WITHOUT = """
import sys, nnbuild
folder, model, epochs, store = sys.argv[1:]
settings = {"dataset": {"data_dir": folder}, "model": {"name": model}, "training": {"epochs": int(epochs)}}
nnbuild.retrain(nnbuild.RunConfig.model_validate(settings), store)
"""
PARTS = ("server", "embedded", "starts")
SERVER = "from flows.embedded_server import EmbeddedServer\nwith EmbeddedServer(): pass"
TENSORFLOW = "import prefect.client.orchestration, flows.retrain, nnbuild.runtime.tensorflow"
BOTH = "from flows.embedded_server import EmbeddedServer\nwith EmbeddedServer(): import flows.retrain, nnbuild.runtime.tensorflow"


def seconds(environment: Mapping[str, str], *arguments: str) -> float:
    """How long a Python process takes as a whole."""
    began = time.perf_counter()
    command = [sys.executable, *arguments]
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,
    )
    return time.perf_counter() - began


def compare(
    what: str, environment: Mapping[str, str], options: argparse.Namespace, folder: str
) -> None:
    """Print each pair, and the medians."""
    given = [
        "--data-dir",
        options.data_dir,
        "--model",
        options.model,
        "--epochs",
        str(options.epochs),
    ]
    run = ["-m", "flows.cli.main", "run", *given, "--store", f"{folder}/with", "--json"]
    without = [
        "-c",
        WITHOUT,
        options.data_dir,
        options.model,
        str(options.epochs),
        f"{folder}/without",
    ]
    for first in (run, without):  # they make a database, and ingest the data
        seconds(environment, *first)
    more, ratios = [], []
    for pair in range(1, options.pairs + 1):
        order = (run, without) if pair % 2 else (without, run)
        took = {command is run: seconds(environment, *command) for command in order}
        more.append(took[True] - took[False])
        ratios.append(took[True] / took[False])
        print(
            f"{what}, pair {pair}: {took[True]:.1f} s with Prefect, {took[False]:.1f} s without",
            flush=True,
        )
    print(
        f"{what}, median of {options.pairs} pairs: {statistics.median(more):+.1f} s, "
        f"{100 * (statistics.median(ratios) - 1):+.1f} % (goal with a server: at most 2 s and 5 %)"
    )


def starts(environment: Mapping[str, str], times: int) -> None:
    """Print how long the embedded server and the imports take, each alone and both at once."""
    took = {
        what: statistics.median(seconds(environment, "-c", program) for _ in range(times))
        for what, program in (("server", SERVER), ("imports", TENSORFLOW), ("both", BOTH))
    }
    print(
        f"start of the embedded server {took['server']:.1f} s, imports of Prefect and TensorFlow {took['imports']:.1f} s, "
        f"both at once {took['both']:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's IDX files",
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
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
            starts(embedded, options.pairs)


if __name__ == "__main__":
    main()
