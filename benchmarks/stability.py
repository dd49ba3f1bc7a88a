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

import mpmath
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild import evaluation
from nnbuild.backend import keras, tf
from nnbuild.data.sources import default_cache, load
from nnbuild.report.charts import lines
from nnbuild.report.standalone import standalone

SCALES = (1, 3, 10, 30, 100, 300, 1000)
TYPES = ("float16", "bfloat16", "float32")
CLASSES = 10
WRONG = 0.05  # a loss or a gradient that is further off than this share is called wrong

Rows = list[dict[str, Any]]


def outside(labels: Any, logits: Any) -> Any:
    """The guide's advice: the loss takes the logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")(labels, logits)


def inside(labels: Any, logits: Any) -> Any:
    """Softmax as the model's last operation, and a loss on probabilities."""
    return keras.losses.SparseCategoricalCrossentropy(reduction="none")(labels, tf.nn.softmax(logits))


def naive(labels: Any, logits: Any) -> Any:
    """The formula of the textbook, as it stands."""
    powers = tf.exp(logits)
    probabilities = powers / tf.reduce_sum(powers, axis=1, keepdims=True)
    return -tf.math.log(tf.gather(probabilities, labels, batch_dims=1))


PLACEMENTS = {"outside": outside, "inside": inside, "naive": naive}


def both(placement: Any, labels: Any, logits: Any) -> tuple[Any, Any]:
    """The loss of each example, and the gradient of their sum by the logits."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = placement(labels, logits)
    return tf.cast(losses, tf.float64), tf.cast(tape.gradient(losses, logits), tf.float64)


# One compiled function for each placement: made here, so that the many calls below share it.
COMPILED = {name: tf.function(lambda y, z, at=placement: both(at, y, z)) for name, placement in PLACEMENTS.items()}


def evaluated(name: str, *, compiled: bool, labels: Any, logits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Losses, shape (n,), and gradients, shape (n, classes), of a placement, as float64."""
    found = COMPILED[name](labels, logits) if compiled else both(PLACEMENTS[name], labels, logits)
    return found[0].numpy(), found[1].numpy()


def exact_by_mpmath(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with 60 digits, rounded once to float64."""
    losses, gradients = [], []
    with mpmath.workdps(60):
        for label, row in zip(labels.tolist(), logits.tolist(), strict=True):
            powers = [mpmath.exp(mpmath.mpf(each)) for each in row]
            total = mpmath.fsum(powers)
            losses.append(float(mpmath.log(total) - mpmath.mpf(row[label])))
            gradients.append([float(each / total - (place == label)) for place, each in enumerate(powers)])
    return np.array(losses), np.array(gradients)


def exact_by_float64(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64 with the largest logit taken out: exact enough, and quick enough for every step."""
    below = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(below)
    total = powers.sum(axis=1, keepdims=True)
    gradients = powers / total
    gradients[np.arange(len(labels)), labels] -= 1
    return (np.log(total) - below[np.arange(len(labels)), labels][:, None])[:, 0], gradients


def off(found: tuple[np.ndarray, np.ndarray], exact: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """What is wrong with each example.

    A loss is wrong if it is off by more than 5 % and by more than 0.001; a gradient if its distance to the exact one
    is more than 5 % of that one's length and more than 0.001; gone is one that is 0 where its length should be 0.1.
    """
    losses, gradients = found
    finite = np.isfinite(losses) & np.isfinite(gradients).all(axis=1)
    loss_off = np.abs(losses - exact[0])
    length = np.linalg.norm(exact[1], axis=1)
    distance = np.linalg.norm(gradients - exact[1], axis=1)
    return {
        "not_finite": ~finite,
        "wrong_loss": ~(loss_off <= np.maximum(WRONG * np.abs(exact[0]), 1e-3)),
        "wrong_gradient": ~(distance <= np.maximum(WRONG * length, 1e-3)),
        "gone_gradient": finite & (length > 0.1) & ~gradients.any(axis=1),
    }


def numerics(examples: int, seed: int = 0) -> Rows:
    """Random logits of every scale, type, placement and way of running."""
    random = np.random.default_rng(seed)
    rows = []
    for kind in TYPES:
        for scale in SCALES:
            logits = tf.cast(tf.constant(random.normal(0, scale, (examples, CLASSES))), kind)
            labels = random.integers(0, CLASSES, examples).astype(np.int32)
            exact = exact_by_mpmath(labels, tf.cast(logits, tf.float64).numpy())
            for name in PLACEMENTS:
                for compiled in (False, True):
                    found = evaluated(name, compiled=compiled, labels=tf.constant(labels), logits=logits)
                    shares = {each: float(wrong.mean()) for each, wrong in off(found, exact).items()}
                    at = {"type": kind, "scale": scale, "placement": name, "compiled": compiled}
                    rows.append(at | {"examples": examples} | shares | {"largest_loss": _largest(found[0])})
    return rows


def _largest(losses: np.ndarray) -> float | None:
    finite = losses[np.isfinite(losses)]
    return float(finite.max()) if len(finite) else None


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
        def step(chosen: Any, model: Any = model, optimizer: Any = optimizer, data: Any = (images, truth)) -> Any:
            labels = tf.gather(data[1], chosen)
            with tf.GradientTape() as tape:
                logits = model(tf.gather(data[0], chosen), training=True)
                loss = tf.reduce_mean(outside(labels, logits))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return labels, logits

        wrong = {(name, compiled): [0, 0, 0] for name in PLACEMENTS for compiled in (False, True)}
        for place in range(steps):
            labels, logits = step(tf.constant(np.take(order, range(place * 32, place * 32 + 32), mode="wrap")))
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
        rows.append({"recipe": name, "epochs": epochs, "warned": _warned(heard)} | _judged(values, test.labels))
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
        name: [(float(np.log10(row["scale"])), row["wrong_gradient"]) for row in chosen if row["placement"] == name]
        for name in PLACEMENTS
    }
    title = "Share of examples whose gradient is wrong, by the scale of the logits, float32, run eagerly"
    return standalone(lines(title, series, below="scale of the logits, power of ten"))


def turned(rows: Rows, measure: str) -> Rows:
    """One row for each type, placement and way of running, one column for each scale."""
    found: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for row in rows:
        key = (row["type"], row["placement"], row["compiled"])
        head = dict(zip(("type", "placement", "compiled"), key, strict=True))
        found.setdefault(key, head)[f"×{row['scale']}"] = row[measure]
    return list(found.values())


def markdown(rows: Rows) -> str:
    """Rows as a table for a document."""

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    body = ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(names) + " |", "|" + " --- |" * len(names), *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("NNBUILD_DATA_DIR"), help="folder with MNIST")
    parser.add_argument("--out", type=Path, default=Path("stability"), help="folder for the tables and the figure")
    parser.add_argument("--examples", type=int, default=500, help="random rows for each scale")
    parser.add_argument("--steps", type=int, default=1875, help="training steps of 32 images, an epoch is 1875")
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
    for measure in ("wrong_gradient", "gone_gradient", "not_finite"):
        print(f"\nnumerics: {measure}, share of {options.examples} examples\n")
        print(markdown(turned(tables["numerics"], measure)))
    for name in ("steps", "mistakes"):
        print(f"\n{name}\n\n{markdown(tables[name])}")


if __name__ == "__main__":
    main()
