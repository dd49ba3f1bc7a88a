"""Softmax and log-softmax over logits: the only ones in the project, outside the model, correct to the last digit.

All of it is computed in float64 from the differences to each row's largest logit, and rounded once to the type of
the logits. log-softmax takes the largest logit out of the sum, log1p(sum of the others), so that it keeps its
digits where a class is nearly certain and `log(softmax)` would give 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import ContractError

_ROWS = 1 << 14  # at a time: the float64 copies of a block stay in the processor's cache
_FLOATS = ("float16", "bfloat16", "float32", "float64")

Array = NDArray[Any]


def softmax(logits: Array, *, temperature: float = 1.0, first_row: int = 0) -> Array:
    """Probabilities of logits.

    Args:
        logits: float16, bfloat16, float32 or float64, shape (n, classes) or (classes,), finite.
        temperature: more than 0; the logits are divided by it (Guo et al. 2017, arXiv 1706.04599).
        first_row: number of the first row, for the message.

    Returns:
        The logits' shape and type; each row is 0 or more and sums to 1. Within 1 unit in the last place of the
        exact value for logits up to ±1e4, and within a relative 1e-11 for float64.

    Raises:
        ContractError: the shape or the type is wrong, or a logit is not finite.
    """
    return _by_blocks(_softmax, logits, temperature, first_row)


def log_softmax(logits: Array, *, temperature: float = 1.0, first_row: int = 0) -> Array:
    """Natural logarithms of `softmax`, finite also where the probability is too small for its type.

    Args:
        logits: as for `softmax`.
        temperature: as for `softmax`.
        first_row: as for `softmax`.

    Returns:
        The logits' shape and type; 0 or less. As exact as `softmax`.

    Raises:
        ContractError: as for `softmax`.
    """
    return _by_blocks(_log_softmax, logits, temperature, first_row)


def predict(
    logits: Array, *, temperature: float = 1.0, first_row: int = 0
) -> tuple[Array, Array, Array]:
    """What the probability table is made of, in one pass over the logits.

    Args:
        logits: as for `softmax`, of shape (n, classes).
        temperature: as for `softmax`.
        first_row: as for `softmax`.

    Returns:
        The probabilities, class by class: shape (classes, n), each row contiguous; the class with the largest logit:
        int16, shape (n,); the logarithm of its probability: shape (n,). As exact as `softmax` and `log_softmax`.

    Raises:
        ContractError: as for `softmax`.
    """
    _require_logits(logits, temperature)
    rows, classes = logits.shape
    probabilities = np.empty((classes, rows), logits.dtype)
    largest = logits.argmax(axis=1)
    logarithms = np.empty(rows, logits.dtype)
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
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


def _require_logits(logits: Array, temperature: float) -> None:
    if not temperature > 0 or not np.isfinite(temperature):
        raise ContractError(f"temperature is {temperature}, expected a number over 0")
    if logits.dtype.name not in _FLOATS or logits.ndim not in (1, 2) or logits.shape[-1] == 0:
        raise ContractError(
            f"expected logits of shape (n, classes) and a float type, got {logits.shape} of {logits.dtype.name}; "
            "pass the model's output, not images or labels"
        )


def _by_blocks(function: Any, logits: Array, temperature: float, first_row: int) -> Array:
    _require_logits(logits, temperature)
    rows = logits.reshape(-1, logits.shape[-1])
    result = np.empty_like(rows)
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS].astype(np.float64)
        require_finite(block, first_row + start)
        result[start : start + _ROWS] = function(block, temperature).astype(logits.dtype)
    return result.reshape(logits.shape)


def require_finite(logits: Array, first_row: int = 0) -> None:
    """Refuse NaN and infinite logits.

    Args:
        logits: float, shape (n, classes).
        first_row: number of the first row.

    Raises:
        ContractError: with how many rows have one, and the first of them.
    """
    if np.isfinite(logits).all():
        return
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    named = ", ".join(str(first_row + row) for row in bad[:5])
    raise ContractError(
        f"{len(bad)} rows of logits are NaN or infinite, expected finite numbers: rows {named}"
        f"{', …' if len(bad) > 5 else ''}; look at these images and at the training's loss"  # noqa: PLR2004
    )


def _below_largest(logits: Array, temperature: float) -> tuple[Array, Array]:
    """Each logit's difference to its row's largest, over the temperature; and where that one is, shape (n, 1)."""
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
