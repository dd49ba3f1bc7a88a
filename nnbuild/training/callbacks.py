"""Keras's callbacks for a config, and what of them must be kept for a run to be resumed exactly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild.config.sections import TrainingConfig
from nnbuild.errors import ConfigError
from nnbuild.runtime.tensorflow import keras, tf
from nnbuild.store import presence

# What Keras's own callbacks change while they watch. The rest of them follows from the config.
_SCALARS = ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter")
_WEIGHTS = "best_weights"


_DIRECTIONS = {"up": "max", "down": "min"}


def _direction(monitor: str, model: Any) -> str:
    """Whether a larger value is better: by the name, or by what the model's own metric says of itself."""
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
        f"monitor {monitor!r}: whether it should rise or fall is not known; watch a name that ends in "
        "accuracy, loss, entropy, error or penalty, or one of Keras's metrics"
    )


def configured(
    training: TrainingConfig, model: Any, *, tensorboard: str | None = None
) -> list[Any]:
    """Return the callbacks that the config asks for.

    Args:
        training: resolved.
        model: Compiled model, which may know whether its metrics should rise or fall.
        tensorboard: folder for TensorBoard's logs, if they are wanted.

    Raises:
        ConfigError: Nothing says whether a monitor should rise or fall.
    """
    callbacks: list[Any] = []
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
    if training.best_weights is not None:
        # It never stops the fit: its patience is longer than the fit. It keeps the best epoch's weights.
        callbacks.append(
            keras.callbacks.EarlyStopping(
                training.best_weights,
                patience=int(training.epochs or 0) + 1,
                mode=_direction(training.best_weights, model),
                restore_best_weights=True,
            )
        )
    if tensorboard is not None:
        callbacks.append(_TensorBoard(tensorboard, write_graph=False))
    return callbacks


class _TensorBoard(keras.callbacks.TensorBoard):  # type: ignore[misc]
    """TensorBoard's logs, in a folder that TensorFlow does not create again once it is gone."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's metrics, unless the store disappeared."""
        presence.require(Path(self.log_dir))
        super().on_epoch_end(epoch, logs)


def best_epoch(callbacks: list[Any]) -> int | None:
    """The epoch, from 1, whose weights were put back at the end; None if the last epoch's stayed."""
    for callback in callbacks:
        if getattr(callback, "restore_best_weights", False) and callback.best_weights is not None:
            return int(callback.best_epoch) + 1
    return None


def state_of(callbacks: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the callbacks have seen so far: their numbers, and their weights as named arrays."""
    numbers: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for position, callback in enumerate(callbacks):
        seen = {name: getattr(callback, name) for name in _SCALARS if hasattr(callback, name)}
        numbers.append(
            {name: None if value is None else float(value) for name, value in seen.items()}
        )
        for index, weight in enumerate(getattr(callback, _WEIGHTS, None) or ()):
            arrays[f"callback/{position}/{index}"] = np.asarray(weight)
    return numbers, arrays


def restore_state(
    callbacks: list[Any], numbers: list[dict[str, Any]], arrays: dict[str, Any]
) -> None:
    """Put back what `state_of` told; modifies the callbacks in place."""
    for position, (callback, seen) in enumerate(zip(callbacks, numbers, strict=True)):
        for name, value in seen.items():
            counts = value is not None and name != "best"
            setattr(callback, name, int(value) if counts else value)
        weights = [arrays[key] for key in _numbered(arrays, f"callback/{position}/")]
        if weights:
            setattr(callback, _WEIGHTS, weights)


def _numbered(arrays: dict[str, Any], prefix: str) -> list[str]:
    return sorted(
        (key for key in arrays if key.startswith(prefix)),
        key=lambda key: int(key.removeprefix(prefix)),
    )


@contextmanager
def averaged(model: Any) -> Iterator[None]:
    """Give a model the average of its weights for the length of a block, if its optimizer keeps one.

    What is validated and restored within the block is then what the fit would end with. Afterwards the
    weights are the same again to the last bit, which Keras's own `SwapEMAWeights` does not promise: it
    swaps by adding and subtracting.

    Args:
        model: Compiled model; it is changed in place.
    """
    optimizer = getattr(
        model.optimizer, "inner_optimizer", model.optimizer
    )  # a loss scale has one inside
    if not optimizer.use_ema:
        yield
        return
    weights = model.trainable_variables
    kept = [tf.identity(weight) for weight in weights]
    optimizer.finalize_variable_values(weights)
    try:
        yield
    finally:
        for weight, value in zip(weights, kept, strict=True):
            weight.assign(value)
