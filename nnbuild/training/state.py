"""Everything in a compiled model that a step can change, as named arrays, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnbuild.backend import tf
from nnbuild.errors import StoreError


def _variables(model: Any, used: Sequence[Any] = ()) -> dict[str, Any]:
    """Weights and seed generators, running metrics, and the optimizer with its step and learning rate.

    And what else the steps use: a metric that a custom step updates without listing it, a counter.
    """
    groups = {
        "model": model.variables,
        "metric": model.metrics_variables,
        "optimizer": model.optimizer.variables,
    }
    known = {id(each.value) for held in groups.values() for each in held}
    groups["other"] = [each for each in used if id(each) not in known]
    return {
        f"{group}/{index}": variable
        for group, held in groups.items()
        for index, variable in enumerate(held)
    }


def model_arrays(model: Any, used: Sequence[Any] = ()) -> dict[str, Any]:
    """Copy the state of a compiled model, its optimizer and its metrics.

    Args:
        model: Compiled model.
        used: TensorFlow variables that its steps use, see `Steps.trace_train`.
    """
    return {name: np.array(each.numpy()) for name, each in _variables(model, used).items()}


def restore_model(model: Any, arrays: dict[str, Any], used: Sequence[Any] = ()) -> None:
    """Put a state back; modifies `model` in place.

    Args:
        model: As for `model_arrays`.
        arrays: What `model_arrays` returned.
        used: As for `model_arrays`.

    Raises:
        StoreError: the arrays are not those of such a model.
    """
    variables = _variables(model, used)
    for name, variable in variables.items():
        found = arrays.get(name)
        if found is None or found.shape != tuple(variable.shape):
            given = "nothing" if found is None else f"shape {found.shape}"
            raise StoreError(
                f"the checkpoint has {given} for {name}, expected {tuple(variable.shape)}; begin a new run"
            )
    for name, variable in variables.items():
        variable.assign(tf.convert_to_tensor(arrays[name], variable.dtype))
