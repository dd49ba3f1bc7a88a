"""Measure what it costs to compute softmax inside the model.

    python benchmarks/stability.py --data-dir DIR [--out stability] [--steps 1875] [--epochs 5]

The program measures errors of loss and gradient on random logits, errors in training steps, and
three silent mistakes. It writes three Parquet tables and a figure, and prints the tables of
docs/development/experiments/softmax-placement.md.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from softmax_placement import (
    CLASSES,
    PLACEMENTS,
    Rows,
    evaluate,
    exact_by_float64,
    find_errors,
    numerics,
    outside,
)

from nnbuild import evaluation
from nnbuild.data.sources import load
from nnbuild.report.charts import lines
from nnbuild.report.page import standalone
from nnbuild.runtime.environment import cache_folder
from nnbuild.runtime.tensorflow import keras, tf


def build_lab(*, activation: str | None = None) -> Any:
    """Build the network of `lab`, with an activation of the last layer or without one."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(25, activation="relu"),
            keras.layers.Dense(15, activation="relu"),
            keras.layers.Dense(CLASSES, activation=activation),
        ]
    )


def training_steps(train: Any, steps: int, seed: int = 0) -> Rows:
    """Train in mixed precision, and compare every placement with float64 on each step's logits.

    The head computes in the half precision of the policy, which is Keras's default. The weights
    are trained by the loss on logits, so that every placement gets the same logits. A step is wrong
    if the gradient of any of its 32 examples is wrong or not finite.

    Args:
        train: Training images and labels.
        steps: Number of training steps.
        seed: Seed of the weights and of the order of the images.

    Returns:
        One row per policy, placement and way to run, with the number of steps with each error.
    """
    rows = []
    for policy in ("mixed_float16", "mixed_bfloat16"):
        keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(policy)
        model, optimizer = build_lab(), keras.optimizers.Adam(0.01)
        keras.config.set_dtype_policy("float32")
        data = tf.constant(train.images), tf.constant(train.labels.astype(np.int32))
        order = np.random.default_rng(seed).permutation(len(train.images)).astype(np.int32)
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(
            batch: Any, model: Any = model, optimizer: Any = optimizer, data: Any = data
        ) -> Any:
            labels = tf.gather(data[1], batch)
            with tf.GradientTape() as tape:
                logits = model(tf.gather(data[0], batch), training=True)
                loss = tf.reduce_mean(outside(labels, logits))
            optimizer.apply(
                tape.gradient(loss, model.trainable_variables), model.trainable_variables
            )
            return labels, logits

        totals = {(name, compiled): [0, 0, 0] for name in PLACEMENTS for compiled in (False, True)}
        for number in range(steps):
            batch = np.take(order, range(number * 32, number * 32 + 32), mode="wrap")
            labels, logits = step(tf.constant(batch))
            exact = exact_by_float64(labels.numpy(), tf.cast(logits, tf.float64).numpy())
            for (name, compiled), counts in totals.items():
                computed = evaluate(name, compiled=compiled, labels=labels, logits=logits)
                errors = find_errors(computed, exact)
                counts[0] += bool((errors["wrong_gradient"] | errors["not_finite"]).any())
                counts[1] += bool(errors["not_finite"].any())
                counts[2] += bool(errors["gone_gradient"].any())
        names = ("wrong_steps", "not_finite_steps", "gone_steps")
        rows += [
            {"policy": policy, "placement": name, "compiled": compiled, "steps": steps}
            | dict(zip(names, counts, strict=True))
            for (name, compiled), counts in totals.items()
        ]
    return rows


RECIPES = {  # name: (activation of the head, from_logits, whether softmax is applied to the scores)
    "logits head, loss on logits": (None, True, True),
    "softmax head, loss on probabilities": ("softmax", False, False),
    "softmax head, loss on logits, softmax again": ("softmax", True, True),
    "logits head, loss on probabilities": (None, False, True),
}


def mistakes(train: Any, test: Any, epochs: int, seed: int = 0) -> Rows:
    """Train `lab` by each recipe, compiled, and score it as the author of the recipe would.

    Args:
        train: Training images and labels.
        test: Test images and labels.
        epochs: Number of epochs per recipe.
        seed: Seed of the weights and of the order of the images.

    Returns:
        One row per recipe, with Keras's warning and the metrics on the test images.
    """
    rows = []
    for name, (activation, from_logits, with_softmax) in RECIPES.items():
        keras.utils.set_random_seed(seed)
        model = build_lab(activation=activation)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        model.compile(keras.optimizers.Adam(1e-3), loss, steps_per_execution=100)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(train.images, train.labels, batch_size=32, epochs=epochs, verbose=0)
        values = model.predict(test.images, batch_size=1000, verbose=0).astype(np.float64)
        if with_softmax:
            values = np.exp(values - values.max(axis=1, keepdims=True))
            values /= values.sum(axis=1, keepdims=True)
        rows.append(
            {"recipe": name, "epochs": epochs, "warned": _has_warning(caught)}
            | _metrics(values, test.labels)
        )
    return rows


def _has_warning(caught: Any) -> bool:
    return any("from_logits" in str(each.message) for each in caught)


def _metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    tiny = np.finfo(np.float64).tiny
    confidence = probabilities.max(axis=1)
    of_label = probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "loss": float(-np.log(np.maximum(of_label, tiny)).mean()),
        "mean_confidence": float(confidence.mean()),
        "largest_confidence": float(confidence.max()),
        "calibration_error": evaluation.calibration_error(probabilities, labels),
    }


def figure(rows: Rows) -> str:
    """Draw the fraction of wrong gradients by the scale of the logits, float32, eager, as SVG."""
    selected = [row for row in rows if row["type"] == "float32" and not row["compiled"]]
    series = {
        name: [
            (float(np.log10(row["scale"])), row["wrong_gradient"])
            for row in selected
            if row["placement"] == name
        ]
        for name in PLACEMENTS
    }
    title = "Fraction of examples with a wrong gradient, by the scale of the logits, float32, eager"
    return standalone(lines(title, series, label="scale of the logits, power of ten"))


def pivot(rows: Rows, measure: str) -> Rows:
    """Arrange a measure in one column per scale.

    Args:
        rows: Rows of `numerics`.
        measure: Name of the column to arrange.

    Returns:
        One row per type, placement and way to run; equal rows of both ways are merged.
    """
    groups: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for row in rows:
        fractions = groups.setdefault((row["type"], row["placement"], row["compiled"]), {})
        fractions[f"×{row['scale']}"] = row[measure]
    table = []
    for (kind, placement, compiled), fractions in groups.items():
        same = fractions == groups[kind, placement, not compiled]
        if not (same and compiled):
            run = "either way" if same else "compiled" if compiled else "eagerly"
            table.append({"type": kind, "placement": placement, "run": run} | fractions)
    return table


def markdown(rows: Rows) -> str:
    """Format rows as a Markdown table."""

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    body = ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(names) + " |", "|" + " --- |" * len(names), *body])


def main() -> None:
    """Measure everything, write the tables and the figure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir", default=os.environ.get("NNBUILD_DATA_DIR"), help="folder with MNIST"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("stability"), help="folder for the tables and the figure"
    )
    parser.add_argument("--examples", type=int, default=500, help="random rows per scale and type")
    parser.add_argument(
        "--steps", type=int, default=1875, help="training steps of 32 images; an epoch has 1875"
    )
    parser.add_argument("--epochs", type=int, default=5, help="epochs per recipe")
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("no folder with MNIST: use --data-dir, or set NNBUILD_DATA_DIR")
    dataset = load("mnist", data_dir=Path(options.data_dir), cache=cache_folder())
    options.out.mkdir(parents=True, exist_ok=True)
    tables = {"numerics": numerics(options.examples)}
    (options.out / "stability.svg").write_text(figure(tables["numerics"]), encoding="utf-8")
    tables["steps"] = training_steps(dataset.train, options.steps)
    tables["mistakes"] = mistakes(dataset.train, dataset.test, options.epochs)
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), options.out / f"{name}.parquet")
    for measure in ("wrong_loss", "wrong_gradient", "gone_gradient", "not_finite"):
        print(f"\nnumerics: {measure}, fraction of {options.examples} examples\n")
        print(markdown(pivot(tables["numerics"], measure)))
    for name in ("steps", "mistakes"):
        print(f"\n{name}\n\n{markdown(tables[name])}")


if __name__ == "__main__":
    main()
