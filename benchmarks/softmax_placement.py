"""Loss and gradient of three placements of softmax, and what is wrong with them beside exact values."""

from typing import Any

import mpmath
import numpy as np

from nnbuild.runtime.tensorflow import keras, tf

SCALES = (1, 3, 10, 30, 100, 300, 1000)
TYPES = ("float16", "bfloat16", "float32")
CLASSES = 10
WRONG = 0.05  # a loss or a gradient that is further off than this share is called wrong

Rows = list[dict[str, Any]]


def outside(labels: Any, logits: Any) -> Any:
    """The guide's advice: the loss takes the logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")(
        labels, logits
    )


def inside(labels: Any, logits: Any) -> Any:
    """Softmax as the model's last operation, and a loss on probabilities."""
    return keras.losses.SparseCategoricalCrossentropy(reduction="none")(
        labels, tf.nn.softmax(logits)
    )


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
COMPILED = {
    name: tf.function(lambda y, z, at=placement: both(at, y, z))
    for name, placement in PLACEMENTS.items()
}


def evaluated(
    name: str, *, compiled: bool, labels: Any, logits: Any
) -> tuple[np.ndarray, np.ndarray]:
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
            gradients.append(
                [float(each / total - (place == label)) for place, each in enumerate(powers)]
            )
    return np.array(losses), np.array(gradients)


def exact_by_float64(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64 with the largest logit taken out: exact enough, and quick enough for every step."""
    below = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(below)
    total = powers.sum(axis=1, keepdims=True)
    gradients = powers / total
    gradients[np.arange(len(labels)), labels] -= 1
    return (np.log(total) - below[np.arange(len(labels)), labels][:, None])[:, 0], gradients


def off(
    found: tuple[np.ndarray, np.ndarray], exact: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
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
                    found = evaluated(
                        name, compiled=compiled, labels=tf.constant(labels), logits=logits
                    )
                    shares = {
                        each: float(wrong.mean()) for each, wrong in off(found, exact).items()
                    }
                    at = {"type": kind, "scale": scale, "placement": name, "compiled": compiled}
                    rows.append(
                        at | {"examples": examples} | shares | {"largest_loss": _largest(found[0])}
                    )
    return rows


def _largest(losses: np.ndarray) -> float | None:
    finite = losses[np.isfinite(losses)]
    return float(finite.max()) if len(finite) else None
