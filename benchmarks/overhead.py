"""What a whole `nnbuild run` costs beside a bare script that does the same by hand, and what `--help` costs.

Both do: import, read MNIST, train `lab` for five epochs, keep the history and a probability table as Parquet. Each is a
new process; they take turns, and the ratio is taken pair by pair.

    python benchmarks/overhead.py --data-dir DIR [--pairs 3]
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
model = keras.Sequential([keras.Input((28, 28)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
    keras.layers.Dense(25, activation="relu"), keras.layers.Dense(15, activation="relu"), keras.layers.Dense(10)])
model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
history = model.fit(x, y, batch_size=32, epochs=5, validation_split=0.2, verbose=0)
pd.DataFrame(history.history).to_parquet(f"{out}/history.parquet")
model.evaluate(test, test_labels, verbose=0)
probabilities = tf.nn.softmax(model.predict(test, verbose=0)).numpy()
pd.DataFrame(probabilities, columns=[f"prob_{k}" for k in range(10)]).to_parquet(f"{out}/predictions.parquet")
model.save(f"{out}/model.keras")
"""


def seconds(*command: str) -> float:
    """How long a command takes as a whole process."""
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    began = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's gzipped IDX files",
    )
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
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
        seconds(*run)  # the first one makes Prefect's database
        for pair in range(options.pairs):
            ours, bare = (
                seconds(*run),
                seconds(sys.executable, "-c", BARE, options.data_dir, folder),
            )
            ratios.append(ours / bare)
            print(
                f"pair {pair + 1}: nnbuild run {ours:.1f} s, bare script {bare:.1f} s, ratio {ours / bare:.2f}",
                flush=True,
            )
    print(
        f"nnbuild run / bare script, median of {options.pairs} pairs: {statistics.median(ratios):.2f} (goal 1.0, at most 1.5)"
    )
    helps = [seconds(nnbuild, "--help") for _ in range(9)]
    print(f"nnbuild --help, median of 9: {statistics.median(helps):.2f} s (goal 0.4 s)")


if __name__ == "__main__":
    main()
