"""Give the gate challengers on MNIST that are as good as the champion, under the rule `better`.

    python benchmarks/gate_aa.py --data-dir DIR [--challengers 200] [--epochs 4] [--network lab]
                                 [--fits FILE.npy]

All models are fits of one recipe with different seeds. Each challenger meets a champion of its own,
and no fit occurs twice, so that the decisions are independent. The gate sees every second test
image; the others show how good the promoted challengers really are.

Two fits of a recipe are never exactly equally good: promoting the better one is no error. So the
table also has the pairs with their results exchanged at random, image by image. Then both are
exactly equally good, on real predictions. The inflation is the variance of the observed difference
over the pairs, divided by the variance that independent images alone would give; it is 1 if the
fits are equally good. Last, all challengers meet one champion; these decisions depend on each
other.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from gate_error_rates import METRICS, compare, print_table
from numpy.typing import NDArray

from nnbuild import models
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.config.sections import GateConfig
from nnbuild.data.dataset import Dataset
from nnbuild.data.sources import load
from nnbuild.evaluation import promotion
from nnbuild.runtime.environment import cache_folder
from nnbuild.runtime.tensorflow import keras, tf

BATCH = 128
LEARNING_RATE = 0.003  # at the start; it falls to 0 linearly


class Recipe:
    """One compiled training loop for fits that differ in their seed only."""

    def __init__(self, network: str, epochs: int, dataset: Dataset) -> None:
        """Compile the loop and keep the images in memory."""
        train = dataset.train
        self._settings = {"model": {"name": network}}
        self._shape = train.images.shape[1:]
        self._model = self._build(0)
        self._optimizer = keras.optimizers.Adam(LEARNING_RATE)
        self._optimizer.build(self._model.trainable_variables)
        self._images, self._labels = tf.constant(train.images), tf.constant(train.labels)
        self._test = dataset.test
        self._epochs, self._steps = epochs, len(train.labels) // BATCH
        self._epoch = tf.function(self._run_epoch)

    def _build(self, seed: int) -> keras.Model:
        config = resolve(RunConfig.model_validate(self._settings | {"seed": seed}))
        return models.build(config, self._shape, 10)

    def _run_epoch(self, order: tf.Tensor, rates: tf.Tensor) -> None:
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for step in tf.range(self._steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            self._optimizer.learning_rate.assign(rates[step])
            with tf.GradientTape() as tape:
                logits = self._model(tf.gather(self._images, batch), training=True)
                loss = loss_of(tf.gather(self._labels, batch), logits)
            variables = self._model.trainable_variables
            self._optimizer.apply(tape.gradient(loss, variables), variables)

    def fit(self, seed: int) -> NDArray[np.bool_]:
        """Fit the network, and return which test images it classifies correctly."""
        self._model.set_weights(self._build(seed).get_weights())
        for variable in self._optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        random = np.random.default_rng(seed)
        rates = np.linspace(LEARNING_RATE, 0, self._epochs * self._steps, dtype=np.float32)
        for epoch in range(self._epochs):
            order = random.permutation(len(self._labels)).astype(np.int32)
            steps = slice(epoch * self._steps, (epoch + 1) * self._steps)
            self._epoch(tf.constant(order), tf.constant(rates[steps]))
        logits = self._model(self._test.images, training=False).numpy()
        return np.asarray(logits.argmax(axis=1) == self._test.labels)


def fit_all(recipe: Recipe, count: int) -> NDArray[np.bool_]:
    """Return which test images each of several fits classifies correctly, shape (count, n)."""
    fits = []
    for seed in range(count):
        fits.append(recipe.fit(seed))
        if seed % 20 == 0:
            print(f"fit {seed}: {100 * fits[-1].mean():.2f} %", file=sys.stderr, flush=True)
    return np.array(fits)


def table(fits: NDArray[np.bool_], labels: NDArray[np.int16]) -> Iterator[Sequence[str]]:
    """Yield a row for each way to pair the fits."""
    half = len(fits) // 2
    champions, challengers = np.array(fits[:half]), np.array(fits[half : 2 * half])
    swap = np.random.default_rng(0).random(champions.shape) < 0.5
    pairs = {
        "a champion each": (champions, challengers),
        "a champion each, results exchanged at random": (
            np.where(swap, challengers, champions),
            np.where(swap, champions, challengers),
        ),
        "one champion for all": (np.broadcast_to(champions[0], challengers.shape), challengers),
    }
    allowed = 0.05 + 1.645 * (0.05 * 0.95 / half) ** 0.5
    for name, (first, second) in pairs.items():
        decisions = [
            promotion.decide(
                promotion.Candidate("challenger", METRICS),
                compare(labels[::2], second[each, ::2], first[each, ::2]),
                GateConfig(rule="better"),
            )
            for each in range(half)
        ]
        promoted = np.array([each.promote for each in decisions])
        difference = second.mean(axis=1) - first.mean(axis=1)
        unseen = second[:, 1::2].mean(axis=1) - first[:, 1::2].mean(axis=1)
        differing = (first != second).mean()
        yield (
            name,
            f"{promoted.sum()} of {half}",
            f"{100 * promoted.mean():.1f} %",
            f"{100 * allowed:.1f} %",
            f"{100 * unseen[promoted].mean():+.2f}" if promoted.any() else "",
            f"{100 * differing:.2f} %",
            f"{(difference**2).mean() * first.shape[1] / differing:.2f}",
        )


def main() -> None:
    """Fit the networks, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("NNBUILD_DATA_DIR"),
        help="folder with MNIST's IDX files",
    )
    parser.add_argument("--challengers", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--network", default="lab")
    parser.add_argument(
        "--fits", type=Path, help="file with the results of the fits; written if it does not exist"
    )
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("no folder with MNIST: use --data-dir, or set NNBUILD_DATA_DIR")
    dataset = load("mnist", data_dir=Path(options.data_dir), cache=cache_folder())
    if options.fits and options.fits.exists():
        fits = np.load(options.fits, allow_pickle=False)
    else:
        fits = fit_all(Recipe(options.network, options.epochs, dataset), 2 * options.challengers)
        if options.fits:
            np.save(options.fits, fits, allow_pickle=False)
    accuracy = f"accuracy {100 * fits.mean():.2f} % ± {100 * fits.mean(axis=1).std():.2f}"
    print(f"{options.network}, {options.epochs} epochs, {len(fits)} fits, {accuracy}")
    print_table(
        [
            "pairs",
            "promoted",
            "share",
            "allowed: 5 % + 1.645 standard errors",
            "points better on other images, if promoted",
            "images on which a pair differs",
            "inflation",
        ],
        table(fits, dataset.test.labels),
    )


if __name__ == "__main__":
    main()
