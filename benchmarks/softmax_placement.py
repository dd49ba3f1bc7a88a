"""Loss and gradient of three placements of softmax, compared with exact values."""

from functools import partial
from typing import Any

import mpmath
import numpy as np

from nnbuild.runtime.tensorflow import keras, tf

SCALES = (1, 3, 10, 30, 100, 300, 1000)
TYPES = ("float16", "bfloat16", "float32")
CLASSES = 10
TOLERANCE = 0.05  # relative error above which a loss or a gradient is called wrong

Rows = list[dict[str, Any]]


def outside(labels: Any, logits: Any) -> Any:
    """Return the losses on logits: softmax is part of the loss, as in nnbuild."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")(
        labels, logits
    )


def inside(labels: Any, logits: Any) -> Any:
    """Return the losses on probabilities, with softmax as the last operation of the model."""
    return keras.losses.SparseCategoricalCrossentropy(reduction="none")(
        labels, tf.nn.softmax(logits)
    )


def naive(labels: Any, logits: Any) -> Any:
    """Return the losses by the formula of the textbook, without any safeguard."""
    powers = tf.exp(logits)
    probabilities = powers / tf.reduce_sum(powers, axis=1, keepdims=True)
    return -tf.math.log(tf.gather(probabilities, labels, batch_dims=1))


PLACEMENTS = {"outside": outside, "inside": inside, "naive": naive}


def compute(placement: Any, labels: Any, logits: Any) -> tuple[Any, Any]:
    """Return the loss of each example, and the gradient of their sum with respect to the logits."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = placement(labels, logits)
    return tf.cast(losses, tf.float64), tf.cast(tape.gradient(losses, logits), tf.float64)


# One compiled function per placement, created here so that the many calls below share it.
COMPILED = {
    name: tf.function(lambda y, z, at=placement: compute(at, y, z))
    for name, placement in PLACEMENTS.items()
}


def evaluate(
    name: str, *, compiled: bool, labels: Any, logits: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate a placement, eagerly or compiled.

    Returns:
        Losses, shape (n,), and gradients, shape (n, classes), both float64.
    """
    function = COMPILED[name] if compiled else partial(compute, PLACEMENTS[name])
    losses, gradients = function(labels, logits)
    return losses.numpy(), gradients.numpy()


def exact_by_mpmath(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute losses and gradients with 60 digits, and round them once to float64."""
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
    """Compute losses and gradients in float64, with the largest logit subtracted first.

    This is accurate enough for the comparison, and fast enough for every training step.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=1, keepdims=True)
    gradients = powers / total
    gradients[np.arange(len(labels)), labels] -= 1
    return (np.log(total) - shifted[np.arange(len(labels)), labels][:, None])[:, 0], gradients


def find_errors(
    computed: tuple[np.ndarray, np.ndarray], exact: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """Compare losses and gradients with the exact ones.

    A loss is wrong if its error is more than 5 % of the exact loss and more than 0.001. A gradient
    is wrong if its distance to the exact one is more than 5 % of that one's length and more than
    0.001. A gradient is gone if it is 0 where its length should be more than 0.1.

    Args:
        computed: Losses, shape (n,), and gradients, shape (n, classes), of a placement.
        exact: The same, exact.

    Returns:
        Boolean arrays, shape (n,), by the kind of error.
    """
    losses, gradients = computed
    finite = np.isfinite(losses) & np.isfinite(gradients).all(axis=1)
    error = np.abs(losses - exact[0])
    length = np.linalg.norm(exact[1], axis=1)
    distance = np.linalg.norm(gradients - exact[1], axis=1)
    return {
        "not_finite": ~finite,
        "wrong_loss": ~(error <= np.maximum(TOLERANCE * np.abs(exact[0]), 1e-3)),
        "wrong_gradient": ~(distance <= np.maximum(TOLERANCE * length, 1e-3)),
        "gone_gradient": finite & (length > 0.1) & ~gradients.any(axis=1),
    }


def numerics(examples: int, seed: int = 0) -> Rows:
    """Measure the errors on random logits.

    Args:
        examples: Number of examples per scale and type.
        seed: Seed of the logits and labels.

    Returns:
        One row per type, scale, placement and way to run, with the fraction of each kind of error.
    """
    random = np.random.default_rng(seed)
    rows = []
    for kind in TYPES:
        for scale in SCALES:
            logits = tf.cast(tf.constant(random.normal(0, scale, (examples, CLASSES))), kind)
            labels = random.integers(0, CLASSES, examples).astype(np.int32)
            exact = exact_by_mpmath(labels, tf.cast(logits, tf.float64).numpy())
            for name in PLACEMENTS:
                for compiled in (False, True):
                    computed = evaluate(
                        name, compiled=compiled, labels=tf.constant(labels), logits=logits
                    )
                    errors = find_errors(computed, exact)
                    rows.append(
                        {
                            "type": kind,
                            "scale": scale,
                            "placement": name,
                            "compiled": compiled,
                            "examples": examples,
                            **{each: float(wrong.mean()) for each, wrong in errors.items()},
                            "largest_loss": _largest(computed[0]),
                        }
                    )
    return rows


def _largest(losses: np.ndarray) -> float | None:
    finite = losses[np.isfinite(losses)]
    return float(finite.max()) if len(finite) else None
