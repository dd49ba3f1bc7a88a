"""Everything in a compiled model that a step can change, as named arrays, and back."""

from typing import Any

import numpy as np

from nnbuild.backend import tf
from nnbuild.errors import StoreError


def _variables(model: Any) -> dict[str, Any]:
    """Weights and seed generators, running metrics, and the optimizer with its step and learning rate."""
    groups = {
        "model": model.variables,
        "metric": model.metrics_variables,
        "optimizer": model.optimizer.variables,
    }
    return {
        f"{group}/{index}": variable
        for group, held in groups.items()
        for index, variable in enumerate(held)
    }


def model_arrays(model: Any) -> dict[str, Any]:
    """A copy of the state of a compiled model, its optimizer and its metrics."""
    return {name: np.array(variable.numpy()) for name, variable in _variables(model).items()}


def restore_model(model: Any, arrays: dict[str, Any]) -> None:
    """Put a state back; modifies `model` in place.

    Raises:
        StoreError: the arrays are not those of such a model.
    """
    variables = _variables(model)
    for name, variable in variables.items():
        found = arrays.get(name)
        if found is None or found.shape != tuple(variable.shape):
            given = "nothing" if found is None else f"shape {found.shape}"
            raise StoreError(
                f"the checkpoint has {given} for {name}, expected {tuple(variable.shape)}; begin a new run"
            )
    for name, variable in variables.items():
        variable.assign(tf.convert_to_tensor(arrays[name], variable.dtype))
