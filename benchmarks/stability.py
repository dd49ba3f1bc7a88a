"""What it costs to put softmax inside the model: loss and gradient, training steps, and the three silent mistakes.

Writes three Parquet tables and a figure, and prints the tables of docs/stability.md.

    python benchmarks/stability.py --data-dir DIR [--out stability] [--steps 1875] [--epochs 5]
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
from placements import (
    CLASSES,
    PLACEMENTS,
    Rows,
    evaluated,
    exact_by_float64,
    numerics,
    off,
    outside,
)

from nnbuild import evaluation
from nnbuild.data.sources import default_cache, load
from nnbuild.report.artifacts import standalone
from nnbuild.report.charts import lines
from nnbuild.runtime.tensorflow import keras, tf


def lab(*, head: str | None = None) -> Any:
    """The guide's lab, its last layer with or without an activation."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(25, activation="relu"),
            keras.layers.Dense(15, activation="relu"),
            keras.layers.Dense(CLASSES, activation=head),
        ]
    )


def training_steps(train: Any, steps: int, seed: int = 0) -> Rows:
    """Train under mixed precision, and hold every placement against float64 on the logits of each step.

    The head computes in the policy's half precision, as it does where nobody says otherwise. The weights go the right
    way (loss on logits), so that every placement sees the same logits; a step is wrong if the gradient of any of its 32
    examples is wrong, or not finite.
    """
    rows = []
    for policy in ("mixed_float16", "mixed_bfloat16"):
        keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(policy)
        model, optimizer = lab(), keras.optimizers.Adam(0.01)
        keras.config.set_dtype_policy("float32")
        images, truth = tf.constant(train.images), tf.constant(train.labels.astype(np.int32))
        order = np.random.default_rng(seed).permutation(len(train.images)).astype(np.int32)
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(
            chosen: Any, model: Any = model, optimizer: Any = optimizer, data: Any = (images, truth)
        ) -> Any:
            labels = tf.gather(data[1], chosen)
            with tf.GradientTape() as tape:
                logits = model(tf.gather(data[0], chosen), training=True)
                loss = tf.reduce_mean(outside(labels, logits))
            optimizer.apply(
                tape.gradient(loss, model.trainable_variables), model.trainable_variables
            )
            return labels, logits

        wrong = {(name, compiled): [0, 0, 0] for name in PLACEMENTS for compiled in (False, True)}
        for place in range(steps):
            labels, logits = step(
                tf.constant(np.take(order, range(place * 32, place * 32 + 32), mode="wrap"))
            )
            exact = exact_by_float64(labels.numpy(), tf.cast(logits, tf.float64).numpy())
            for (name, compiled), counts in wrong.items():
                found = off(evaluated(name, compiled=compiled, labels=labels, logits=logits), exact)
                counts[0] += bool((found["wrong_gradient"] | found["not_finite"]).any())
                counts[1] += bool(found["not_finite"].any())
                counts[2] += bool(found["gone_gradient"].any())
        names = ("wrong_steps", "not_finite_steps", "gone_steps")
        rows += [
            {"policy": policy, "placement": name, "compiled": compiled, "steps": steps}
            | dict(zip(names, counts, strict=True))
            for (name, compiled), counts in wrong.items()
        ]
    return rows


RECIPES = {  # name: (the head's activation, from_logits, how often softmax is applied when scoring)
    "logits head, loss on logits": (None, True, 1),
    "softmax head, loss on probabilities": ("softmax", False, 0),
    "softmax head, loss on logits, softmax again": ("softmax", True, 1),
    "logits head, loss on probabilities": (None, False, 1),
}


def mistakes(train: Any, test: Any, epochs: int, seed: int = 0) -> Rows:
    """Train the lab by each recipe, compiled, and score it as that recipe's author would."""
    rows = []
    for name, (head, from_logits, softmaxes) in RECIPES.items():
        keras.utils.set_random_seed(seed)
        model = lab(head=head)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        model.compile(keras.optimizers.Adam(1e-3), loss, steps_per_execution=100)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            model.fit(train.images, train.labels, batch_size=32, epochs=epochs, verbose=0)
        values = model.predict(test.images, batch_size=1000, verbose=0).astype(np.float64)
        if softmaxes:
            values = np.exp(values - values.max(axis=1, keepdims=True))
            values /= values.sum(axis=1, keepdims=True)
        rows.append(
            {"recipe": name, "epochs": epochs, "warned": _warned(heard)}
            | _judged(values, test.labels)
        )
    return rows


def _warned(heard: Any) -> bool:
    return any("from_logits" in str(each.message) for each in heard)


def _judged(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
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
    """Share of wrong gradients by the scale of the logits, in float32, run eagerly, as an SVG."""
    chosen = [row for row in rows if row["type"] == "float32" and not row["compiled"]]
    series = {
        name: [
            (float(np.log10(row["scale"])), row["wrong_gradient"])
            for row in chosen
            if row["placement"] == name
        ]
        for name in PLACEMENTS
    }
    title = "Share of examples whose gradient is wrong, by the scale of the logits, float32, run eagerly"
    return standalone(lines(title, series, label="scale of the logits, power of ten"))


def turned(rows: Rows, measure: str) -> Rows:
    """One row for each type, placement and way of running, one column for each scale; equal ways are one row."""
    found: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for row in rows:
        shares = found.setdefault((row["type"], row["placement"], row["compiled"]), {})
        shares[f"×{row['scale']}"] = row[measure]
    table = []
    for (kind, placement, compiled), shares in found.items():
        same = shares == found[kind, placement, not compiled]
        if not (same and compiled):
            run = "either way" if same else "compiled" if compiled else "eagerly"
            table.append({"type": kind, "placement": placement, "run": run} | shares)
    return table


def markdown(rows: Rows) -> str:
    """Rows as a table for a document."""

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    body = ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(names) + " |", "|" + " --- |" * len(names), *body])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir", default=os.environ.get("NNBUILD_DATA_DIR"), help="folder with MNIST"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("stability"), help="folder for the tables and the figure"
    )
    parser.add_argument("--examples", type=int, default=500, help="random rows for each scale")
    parser.add_argument(
        "--steps", type=int, default=1875, help="training steps of 32 images, an epoch is 1875"
    )
    parser.add_argument("--epochs", type=int, default=5, help="of each recipe")
    options = parser.parse_args()
    if not options.data_dir:
        sys.exit("give --data-dir, or set NNBUILD_DATA_DIR")
    dataset = load("mnist", data_dir=Path(options.data_dir), cache=default_cache())
    options.out.mkdir(parents=True, exist_ok=True)
    tables = {"numerics": numerics(options.examples)}
    (options.out / "stability.svg").write_text(figure(tables["numerics"]), encoding="utf-8")
    tables["steps"] = training_steps(dataset.train, options.steps)
    tables["mistakes"] = mistakes(dataset.train, dataset.test, options.epochs)
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), options.out / f"{name}.parquet")
    for measure in ("wrong_loss", "wrong_gradient", "gone_gradient", "not_finite"):
        print(f"\nnumerics: {measure}, share of {options.examples} examples\n")
        print(markdown(turned(tables["numerics"], measure)))
    for name in ("steps", "mistakes"):
        print(f"\n{name}\n\n{markdown(tables[name])}")


if __name__ == "__main__":
    main()
