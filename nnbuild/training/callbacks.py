"""Keras callbacks of a configuration, and their state for exact resumption."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild.config.sections import TrainingConfig
from nnbuild.errors import ConfigError
from nnbuild.runtime.tensorflow import keras, tf
from nnbuild.store import presence

# The state of Keras's callbacks; their other attributes follow from the configuration.
_SCALARS = ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter")
_WEIGHTS = "best_weights"  # Keras's name
_DIRECTIONS = {"up": "max", "down": "min"}


def _direction(monitor: str, model: keras.Model) -> str:
    """Return whether a monitor should rise or fall: by its name, or as the model's metric says.

    Raises:
        ConfigError: Neither of them says it.
    """
    name = monitor.removeprefix("val_")
    if name.endswith("accuracy"):
        return "max"
    if name.endswith(("loss", "entropy", "error", "penalty")):
        return "min"
    for metric in model.metrics:
        for each in (metric, *getattr(metric, "metrics", ())):
            if each.name == name and (known := getattr(each, "_direction", None)) in _DIRECTIONS:
                return _DIRECTIONS[known]
    raise ConfigError(
        f"monitor {monitor!r}: whether it should rise or fall is not known; use a name that ends "
        "in accuracy, loss, entropy, error or penalty, or one of Keras's metrics"
    )


def configured(
    training: TrainingConfig, model: keras.Model, *, tensorboard: str | None = None
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a configuration.

    Args:
        training: Resolved settings.
        model: Compiled model, whose metrics may say whether they should rise or fall.
        tensorboard: Folder for TensorBoard's logs; None for no logs.

    Raises:
        ConfigError: It is not known whether a monitor should rise or fall.
    """
    callbacks: list[keras.callbacks.Callback] = []
    if (stopping := training.early_stopping) is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                stopping.monitor,
                stopping.min_delta,
                stopping.patience,
                mode=_direction(stopping.monitor, model),
            )
        )
    if (plateau := training.reduce_on_plateau) is not None:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                plateau.monitor,
                plateau.factor,
                plateau.patience,
                mode=_direction(plateau.monitor, model),
                min_lr=plateau.min_learning_rate,
            )
        )
    if training.restore_best_weights is not None:
        # Its patience is longer than the fit: it only restores the best epoch's weights.
        callbacks.append(
            keras.callbacks.EarlyStopping(
                training.restore_best_weights,
                patience=int(training.epochs or 0) + 1,
                mode=_direction(training.restore_best_weights, model),
                restore_best_weights=True,
            )
        )
    if tensorboard is not None:
        callbacks.append(_TensorBoard(tensorboard, write_graph=False))
    return callbacks


class _TensorBoard(keras.callbacks.TensorBoard):  # type: ignore[misc]
    """TensorBoard callback that does not re-create the folder of a store that disappeared."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's metrics, unless the store disappeared."""
        presence.require(Path(self.log_dir))
        super().on_epoch_end(epoch, logs)


def best_epoch(callbacks: list[keras.callbacks.Callback]) -> int | None:
    """Return the epoch, from 1, whose weights are restored at the end; None for the last epoch."""
    for callback in callbacks:
        if getattr(callback, "restore_best_weights", False) and callback.best_weights is not None:
            return int(callback.best_epoch) + 1
    return None


def state_of(
    callbacks: list[keras.callbacks.Callback],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the state of callbacks: numbers for each of them, and weights as named arrays."""
    numbers: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for position, callback in enumerate(callbacks):
        state = {name: getattr(callback, name) for name in _SCALARS if hasattr(callback, name)}
        numbers.append(
            {name: None if value is None else float(value) for name, value in state.items()}
        )
        for index, weight in enumerate(getattr(callback, _WEIGHTS, None) or ()):
            arrays[f"callback/{position}/{index}"] = np.asarray(weight)
    return numbers, arrays


def restore_state(
    callbacks: list[keras.callbacks.Callback],
    numbers: list[dict[str, Any]],
    arrays: dict[str, Any],
) -> None:
    """Restore the state of callbacks in place; the arguments are the results of `state_of`."""
    for position, (callback, state) in enumerate(zip(callbacks, numbers, strict=True)):
        for name, value in state.items():
            is_count = value is not None and name != "best"
            setattr(callback, name, int(value) if is_count else value)
        weights = [arrays[key] for key in _numbered(arrays, f"callback/{position}/")]
        if weights:
            setattr(callback, _WEIGHTS, weights)


def _numbered(arrays: dict[str, Any], prefix: str) -> list[str]:
    return sorted(
        (key for key in arrays if key.startswith(prefix)),
        key=lambda key: int(key.removeprefix(prefix)),
    )


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Set a model to the average of its weights within a block, if its optimizer has one.

    Validation and callbacks then see the weights that the fit would end with. Afterwards the
    weights are the same to the last bit; Keras's own `SwapEMAWeights` swaps by adding and
    subtracting.

    Args:
        model: Compiled model, modified in place.
    """
    # An optimizer that scales the loss has another one inside.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    weights = model.trainable_variables
    saved = [tf.identity(weight) for weight in weights]
    optimizer.finalize_variable_values(weights)
    try:
        yield
    finally:
        for weight, value in zip(weights, saved, strict=True):
            weight.assign(value)
