"""Compare a whole `nnbuild run` with a bare script that does the same work, and time `--help`.

    python benchmarks/overhead.py --data-dir DIR [--pairs 3]

Both import their libraries, read MNIST, train `lab` for five epochs, and write the history and a
table of probabilities as Parquet. Each is a new process. They take turns, and the result is the
median of the ratios of the pairs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = """
import gzip, sys
import numpy as np, pandas as pd, tensorflow as tf, keras
folder, out = sys.argv[1:]
def idx(name, skip):
    with gzip.open(f"{folder}/{name}.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=skip)
x, y = idx("train-images-idx3-ubyte", 16).reshape(-1, 28, 28), idx("train-labels-idx1-ubyte", 8)
test = idx("t10k-images-idx3-ubyte", 16).reshape(-1, 28, 28)
test_labels = idx("t10k-labels-idx1-ubyte", 8)
layers = keras.layers
model = keras.Sequential([keras.Input((28, 28)), layers.Rescaling(1 / 255), layers.Flatten(),
    layers.Dense(25, activation="relu"), layers.Dense(15, activation="relu"), layers.Dense(10)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
history = model.fit(x, y, batch_size=32, epochs=5, validation_split=0.2, verbose=0)
pd.DataFrame(history.history).to_parquet(f"{out}/history.parquet")
model.evaluate(test, test_labels, verbose=0)
probabilities = tf.nn.softmax(model.predict(test, verbose=0)).numpy()
predictions = pd.DataFrame(probabilities, columns=[f"prob_{k}" for k in range(10)])
predictions.to_parquet(f"{out}/predictions.parquet")
model.save(f"{out}/model.keras")
"""


def time_command(*command: str) -> float:
    """Run a command, and return the seconds of the whole process."""
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    start_time = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    return time.perf_counter() - start_time


def main() -> None:
    """Print the ratio of each pair, the median, and the time of `nnbuild --help`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's gzipped IDX files",
    )
    parser.add_argument("--pairs", type=int, default=3, help="number of pairs of processes")
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("no folder with MNIST: use --data-dir, or set NNBUILD_DATA_DIR")
    nnbuild = str(Path(sys.executable).with_name("nnbuild"))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        run = [
            nnbuild,
            "run",
            "--data-dir",
            options.data_dir,
            "--model",
            "lab",
            "--epochs",
            "5",
            "--store",
            f"{folder}/store",
            "--json",
        ]
        time_command(*run)  # the first run creates Prefect's database
        for pair in range(options.pairs):
            ours = time_command(*run)
            bare = time_command(sys.executable, "-c", BARE, options.data_dir, folder)
            ratios.append(ours / bare)
            print(
                f"pair {pair + 1}: nnbuild run {ours:.1f} s, bare script {bare:.1f} s, "
                f"ratio {ours / bare:.2f}",
                flush=True,
            )
    print(
        f"nnbuild run / bare script, median of {options.pairs} pairs: "
        f"{statistics.median(ratios):.2f} (goal: 1.0, at most 1.5)"
    )
    seconds = statistics.median(time_command(nnbuild, "--help") for _ in range(9))
    print(f"nnbuild --help, median of 9: {seconds:.2f} s (goal: at most 0.4 s)")


if __name__ == "__main__":
    main()
