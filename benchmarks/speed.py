"""How long training takes beside Keras's own: `fast` beside keras.io's convnet, and an epoch of `lab` beside `model.fit`.

    python benchmarks/speed.py --data-dir DIR [--pairs 3] [--epochs 12]

Each fit has a process of its own and they take turns; the ratio is taken pair by pair. Seconds are those of the fit,
its compilation included, without imports and reading; an epoch of `lab` is the median of those after the first.
keras.io's recipe is "Simple MNIST convnet" (https://keras.io/examples/vision/mnist_convnet/) in 12 epochs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIDES = ("keras.io", "fast", "model.fit", "lab")


def by_keras(data_dir: Path, *, convnet: bool, epochs: int) -> dict[str, float]:
    """The convnet of keras.io, or the lab's network with batches of 32, by `model.fit`."""
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

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, *_: object) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, *_: object) -> None:
            epoch_seconds.append(time.perf_counter() - self.began)

    began = time.perf_counter()
    batch, held_out = (128, 0.1) if convnet else (32, 0.2)
    model.fit(
        train,
        data.train.labels,
        batch_size=batch,
        epochs=epochs,
        validation_split=held_out,
        verbose=0,
        callbacks=[Watch()],
    )
    seconds = time.perf_counter() - began
    accuracy = float(model.evaluate(test, data.test.labels, verbose=0)[1])
    return {"seconds": seconds, "epoch": statistics.median(epoch_seconds[1:]), "accuracy": accuracy}


def by_nnbuild(data_dir: Path, network: str, epochs: int | None) -> dict[str, float]:
    """A network of ours with its own recipe, for as many epochs as its recipe says, or as are given."""
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
    steps = -(
        -round(60_000 * (1 - config.training.validation_fraction)) // config.training.batch_size
    )
    models.compile_model(model, config.training, steps=steps * config.training.epochs)
    began = time.perf_counter()
    fitted = fit(model, data.train, config, 10)
    seconds = time.perf_counter() - began
    plain = models.build_float32(model, config, (28, 28, 1), 10)
    found = CompiledLoop(plain, data.test, classes=10, batch_size=1000).test(range(10_000))
    each = [row["value"] for row in fitted.table.to_pylist() if row["metric"] == "epoch_seconds"]
    return {"seconds": seconds, "epoch": statistics.median(each[1:]), "accuracy": found["accuracy"]}


def side(name: str, data_dir: Path, epochs: int) -> dict[str, float]:
    """One fit, in this process."""
    if name in {"keras.io", "model.fit"}:
        return by_keras(
            data_dir, convnet=name == "keras.io", epochs=epochs if name == "keras.io" else 5
        )
    return by_nnbuild(data_dir, name, None if name == "fast" else 5)


def main() -> None:
    """Print the pairs and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("NNBUILD_DATA_DIR"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of keras.io's recipe")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
    if given.side:
        print(json.dumps(side(given.side, Path(given.data_dir), given.epochs)))
        return
    for theirs, ours, what in (("keras.io", "fast", "seconds"), ("model.fit", "lab", "epoch")):
        ratios = []
        for pair in range(given.pairs):
            found = {}
            for name in (theirs, ours):
                command = [
                    sys.executable,
                    __file__,
                    "--side",
                    name,
                    "--data-dir",
                    str(given.data_dir),
                ]
                command += ["--epochs", str(given.epochs)]
                told = subprocess.run(
                    command,
                    check=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                found[name] = json.loads(told.stdout.splitlines()[-1])
            ratios.append(found[theirs][what] / found[ours][what])
            print(
                f"pair {pair + 1}: "
                + ", ".join(
                    f"{name} {each[what]:.2f} s ({each['accuracy']:.2%})"
                    for name, each in found.items()
                )
                + f", {ratios[-1]:.1f} times",
                flush=True,
            )
        print(
            f"{ours}: {what} {statistics.median(ratios):.1f} times less than {theirs}, median of {given.pairs}"
        )


if __name__ == "__main__":
    main()
