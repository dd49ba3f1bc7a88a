"""Softmax, log-softmax and energy, accurate to the last digit; the only ones in the project.

Everything is computed in float64 from the differences to the largest logit of each row, and rounded
once to the type of the logits. log-softmax takes the largest logit out of the sum, log1p(sum of the
others), and so keeps its digits where a class is nearly certain and `log(softmax)` would give 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import ContractError

_BLOCK_ROWS = 1 << 14  # so that the float64 copies of a block stay in the processor's cache
_FLOATS = ("float16", "bfloat16", "float32", "float64")

Array = NDArray[Any]


def softmax(logits: Array, *, temperature: float = 1.0, first_row: int = 0) -> Array:
    """Convert logits to probabilities.

    Args:
        logits: Finite logits, float16, bfloat16, float32 or float64, shape (n, classes) or
            (classes,).
        temperature: Divisor of the logits, more than 0 (Guo et al. 2017, arXiv 1706.04599).
        first_row: Number of the first row, for messages.

    Returns:
        Probabilities of the same shape and type; each row is 0 or more and sums to 1. They are
        within 1 unit in the last place of the exact value for logits up to ±1e4, and within a
        relative 1e-11 for float64.

    Raises:
        ContractError: The shape or type is wrong, or a logit is not finite.
    """
    return _by_blocks(_softmax, logits, temperature, first_row)


def log_softmax(logits: Array, *, temperature: float = 1.0, first_row: int = 0) -> Array:
    """Compute the natural logarithms of `softmax`, finite also for tiny probabilities.

    Args:
        logits: As for `softmax`.
        temperature: As for `softmax`.
        first_row: As for `softmax`.

    Returns:
        Logarithms of the same shape and type, 0 or less, as accurate as `softmax`.

    Raises:
        ContractError: As for `softmax`.
    """
    return _by_blocks(_log_softmax, logits, temperature, first_row)


def predict(
    logits: Array, *, temperature: float = 1.0, first_row: int = 0
) -> tuple[Array, Array, Array]:
    """Compute the columns of the table `predictions` in one pass over the logits.

    Args:
        logits: As for `softmax`, shape (n, classes).
        temperature: As for `softmax`.
        first_row: As for `softmax`.

    Returns:
        Probabilities by class, shape (classes, n), each row contiguous; predicted class, int16,
        shape (n,); logarithm of its probability, shape (n,). As accurate as `softmax` and
        `log_softmax`.

    Raises:
        ContractError: As for `softmax`.
    """
    _require_logits(logits, temperature)
    rows, classes = logits.shape
    probabilities = np.empty((classes, rows), logits.dtype)
    largest = logits.argmax(axis=1)
    logarithms = np.empty(rows, logits.dtype)
    for start in range(0, rows, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        block = np.ascontiguousarray(logits[part].T, np.float64)
        require_finite(block.T, first_row + start)
        block -= block.max(axis=0)
        if temperature != 1.0:
            block /= temperature
        np.exp(block, out=block)
        block[largest[part], np.arange(block.shape[1])] = 0.0
        others = block.sum(axis=0)
        block[largest[part], np.arange(block.shape[1])] = 1.0
        probabilities[:, part] = block / (1.0 + others)
        logarithms[part] = -np.log1p(others)
    return probabilities, largest.astype(np.int16), logarithms


def energy(logits: Array, *, first_row: int = 0) -> Array:
    """Compute the free energy of each row, -log(sum(exp(logits))).

    Softmax loses the level of the logits, the energy keeps it: it is lower for images like those of
    the training (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, arXiv
    2010.03759, equation 4 at temperature 1).

    Args:
        logits: As for `softmax`.
        first_row: As for `softmax`.

    Returns:
        Energy, shape (n,), or () for one row; float64 for float64 logits, else float32. It is
        computed in float64 and rounded once.

    Raises:
        ContractError: As for `softmax`.
    """
    _require_logits(logits, 1.0)
    rows = logits.reshape(-1, logits.shape[-1])
    energies = np.empty(len(rows), np.float64 if logits.dtype == np.float64 else np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS].astype(np.float64)
        require_finite(block, first_row + start)
        differences, largest = _below_largest(block, 1.0)
        others = np.exp(differences, out=differences)
        np.put_along_axis(others, largest, 0.0, axis=1)
        top = np.take_along_axis(block, largest, axis=1)[:, 0]
        energies[start : start + _BLOCK_ROWS] = -(top + np.log1p(others.sum(axis=1)))
    return energies.reshape(logits.shape[:-1])


def _require_logits(logits: Array, temperature: float) -> None:
    if not temperature > 0 or not np.isfinite(temperature):
        raise ContractError(f"temperature is {temperature}, expected a number above 0")
    if logits.dtype.name not in _FLOATS or logits.ndim not in (1, 2) or logits.shape[-1] == 0:
        raise ContractError(
            f"expected logits of shape (n, classes) and a float type, got {logits.shape} of "
            f"{logits.dtype.name}; pass the model's output, not images or labels"
        )


def _by_blocks(function: Any, logits: Array, temperature: float, first_row: int) -> Array:
    _require_logits(logits, temperature)
    rows = logits.reshape(-1, logits.shape[-1])
    result = np.empty_like(rows)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS].astype(np.float64)
        require_finite(block, first_row + start)
        result[start : start + _BLOCK_ROWS] = function(block, temperature).astype(logits.dtype)
    return result.reshape(logits.shape)


def require_finite(
    logits: Array, first_row: int = 0, *, example_ids: Sequence[Any] | Array | None = None
) -> None:
    """Refuse NaN and infinite logits.

    Args:
        logits: Logits, float, shape (n, classes).
        first_row: Number of the first row, for the message.
        example_ids: IDs of the rows, for the message in place of their numbers.

    Raises:
        ContractError: A logit is not finite; the message has the number of such rows.
    """
    if np.isfinite(logits).all():
        return
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if example_ids is None:
        examples = "rows " + ", ".join(str(first_row + row) for row in bad[:5])
    else:
        examples = "example IDs " + ", ".join(str(example_ids[row]) for row in bad[:5])
    raise ContractError(
        f"{len(bad)} rows of logits are NaN or infinite, expected finite numbers: {examples}"
        f"{', …' if len(bad) > 5 else ''}; check these images and the training loss"
    )


def _below_largest(logits: Array, temperature: float) -> tuple[Array, Array]:
    """Return the differences to the largest logit of each row, and its index, shape (n, 1)."""
    largest = logits.argmax(axis=1, keepdims=True)
    differences = logits - np.take_along_axis(logits, largest, axis=1)
    if temperature != 1.0:
        differences /= temperature
    return differences, largest


def _softmax(logits: Array, temperature: float) -> Array:
    differences, _ = _below_largest(logits, temperature)
    probabilities: Array = np.exp(differences, out=differences)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def _log_softmax(logits: Array, temperature: float) -> Array:
    differences, largest = _below_largest(logits, temperature)
    others = np.exp(differences)
    np.put_along_axis(others, largest, 0.0, axis=1)
    differences -= np.log1p(others.sum(axis=1, keepdims=True))
    return differences
