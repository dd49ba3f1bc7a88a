"""Compare the training speed with Keras: `fast` with keras.io's convnet, `lab` with `model.fit`.

    python benchmarks/speed.py --data-dir DIR [--pairs 3] [--epochs 12]

Each fit is a new process. The two sides take turns, and a ratio is the median over the pairs.
Seconds are those of the fit with its compilation, without imports and reading. `lab` is compared by
the median time of the epochs after the first. keras.io's recipe is "Simple MNIST convnet"
(https://keras.io/examples/vision/mnist_convnet/) in 12 epochs.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIDES = ("keras.io", "fast", "model.fit", "lab")


def by_keras(data_dir: Path, *, convnet: bool, epochs: int) -> dict[str, float]:
    """Train keras.io's convnet, or the network of `lab` with batches of 32, by `model.fit`.

    Args:
        data_dir: Folder with MNIST.
        convnet: Whether to train the convnet rather than the network of `lab`.
        epochs: Number of epochs.

    Returns:
        Seconds of the fit, median seconds of an epoch after the first, and test accuracy.
    """
    from nnbuild.data import sources
    from nnbuild.runtime.tensorflow import keras

    data = sources.load("mnist", data_dir=data_dir, cache=data_dir)
    layers = keras.layers
    train, test = (
        data.train.images.astype("float32") / 255,
        data.test.images.astype("float32") / 255,
    )
    body = (
        [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
        if convnet
        else [
            layers.Flatten(),
            layers.Dense(25, "relu"),
            layers.Dense(15, "relu"),
            layers.Dense(10),
        ]
    )
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((28, 28, 1)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not convnet)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
    epoch_seconds: list[float] = []

    class EpochTimer(keras.callbacks.Callback):
        def on_epoch_begin(self, *_: object) -> None:
            self.start_time = time.perf_counter()

        def on_epoch_end(self, *_: object) -> None:
            epoch_seconds.append(time.perf_counter() - self.start_time)

    start_time = time.perf_counter()
    batch, held_out = (128, 0.1) if convnet else (32, 0.2)
    model.fit(
        train,
        data.train.labels,
        batch_size=batch,
        epochs=epochs,
        validation_split=held_out,
        verbose=0,
        callbacks=[EpochTimer()],
    )
    seconds = time.perf_counter() - start_time
    accuracy = float(model.evaluate(test, data.test.labels, verbose=0)[1])
    return {"seconds": seconds, "epoch": statistics.median(epoch_seconds[1:]), "accuracy": accuracy}


def by_nnbuild(data_dir: Path, network: str, epochs: int | None) -> dict[str, float]:
    """Train a built-in network with its own recipe.

    Args:
        data_dir: Folder with MNIST.
        network: Name of the network.
        epochs: Number of epochs, or None for that of the recipe.

    Returns:
        Seconds of the fit, median seconds of an epoch after the first, and test accuracy.
    """
    from nnbuild import models
    from nnbuild.config.schema import RunConfig, resolve
    from nnbuild.data import sources
    from nnbuild.runtime.tensorflow import pin_threads
    from nnbuild.training import fit
    from nnbuild.training.loop import CompiledLoop

    data = sources.load("mnist", data_dir=data_dir, cache=data_dir)
    config = resolve(
        RunConfig.model_validate({"model": {"name": network}, "training": {"epochs": epochs}})
    )
    pin_threads(config.training.threads)
    model = models.build(config, (28, 28, 1), 10)
    examples = round(60_000 * (1 - config.training.validation_fraction))
    steps = math.ceil(examples / config.training.batch_size)
    models.compile_model(model, config.training, steps=steps * config.training.epochs)
    start_time = time.perf_counter()
    fitted = fit(model, data.train, config, 10)
    seconds = time.perf_counter() - start_time
    plain = models.build_float32(model, config, (28, 28, 1), 10)
    metrics = CompiledLoop(plain, data.test, classes=10, batch_size=1000).test(range(10_000))
    rows = fitted.table.to_pylist()
    epoch_seconds = [row["value"] for row in rows if row["metric"] == "epoch_seconds"]
    return {
        "seconds": seconds,
        "epoch": statistics.median(epoch_seconds[1:]),
        "accuracy": metrics["accuracy"],
    }


def run_side(name: str, data_dir: Path, epochs: int) -> dict[str, float]:
    """Run the fit of one side in this process, with `epochs` epochs for keras.io's recipe."""
    if name == "keras.io":
        return by_keras(data_dir, convnet=True, epochs=epochs)
    if name == "model.fit":
        return by_keras(data_dir, convnet=False, epochs=5)
    return by_nnbuild(data_dir, name, None if name == "fast" else 5)


def run_side_in_child(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Run the fit of one side in a child process."""
    arguments = ["--data-dir", str(options.data_dir), "--epochs", str(options.epochs)]
    done = subprocess.run(
        [sys.executable, __file__, "--side", name, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    results: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    """Print the ratio of each pair, and the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST",
    )
    parser.add_argument("--pairs", type=int, default=3, help="number of pairs of fits")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of keras.io's recipe")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("no folder with MNIST: use --data-dir, or set NNBUILD_DATA_DIR")
    if options.side:
        print(json.dumps(run_side(options.side, Path(options.data_dir), options.epochs)))
        return
    comparisons = (
        ("keras.io", "fast", "seconds", "whole fit"),
        ("model.fit", "lab", "epoch", "per epoch"),
    )
    for theirs, ours, what, unit in comparisons:
        ratios = []
        for pair in range(options.pairs):
            results = {name: run_side_in_child(name, options) for name in (theirs, ours)}
            ratios.append(results[theirs][what] / results[ours][what])
            sides = ", ".join(
                f"{name} {each[what]:.2f} s ({each['accuracy']:.2%})"
                for name, each in results.items()
            )
            print(f"pair {pair + 1}: {sides}, ratio {ratios[-1]:.1f}", flush=True)
        print(
            f"{ours} is {statistics.median(ratios):.1f} times as fast as {theirs} ({unit}), "
            f"median of {options.pairs}"
        )


if __name__ == "__main__":
    main()
