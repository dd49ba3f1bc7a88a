"""Report what `train_step` and `test_step` return in the way of Keras's `fit`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nnbuild.errors import ContractError
from nnbuild.runtime.tensorflow import tf

LOSS = "loss"


class StepLogs:
    """Values that a model's steps return.

    Keras's `fit` reports the model's metrics if a step returns exactly those keys, and otherwise
    what the last step returned. A compiled loop returns nothing from its steps, so that the latter
    are stored in variables, which are created when the step is traced.

    Args:
        model: Compiled model.
        step: Name of the method, for messages: `train_step` or `test_step`.
        watch_loss: Whether to keep reporting a loss that was not finite once: the last step of a
            compiled call may be finite again.
    """

    def __init__(self, model: Any, step: str, *, watch_loss: bool) -> None:
        self._model, self._step, self._watch_loss = model, step, watch_loss
        self._metrics = set(model.get_metrics_result())
        self._last: dict[str, tf.Variable] | None = None

    def record(self, logs: Any) -> None:
        """Store what a step returns; called inside the compiled loop.

        Raises:
            ContractError: The step returns something that a history cannot hold.
        """
        if logs is None and not self._watch_loss:
            logs = {}  # Keras accepts None from a test_step, and not from a train_step
        if not isinstance(logs, Mapping):
            raise self._refused(f"returns {type(logs).__name__}, expected a dict of numbers")
        if set(logs) == self._metrics:
            self._last = None
            return
        values = dict(self._scalars(_flattened(logs)))
        if self._last is None or set(self._last) != set(values):
            self._last = {name: _variable() for name in values}
        for name, value in values.items():
            self._last[name].assign(self._sticky(name, value))

    def result(self) -> dict[str, tf.Tensor]:
        """Return the values so far, as float64 scalars by name."""
        if self._last is not None:
            return {name: tf.convert_to_tensor(value) for name, value in self._last.items()}
        return dict(self._scalars(self._model.get_metrics_result().items()))

    def _sticky(self, name: str, value: tf.Tensor) -> tf.Tensor:
        """Return the value to report: a loss that was not finite before, or the new value."""
        if name != LOSS or not self._watch_loss or self._last is None:
            return value
        before = self._last[name]
        return tf.where(tf.math.is_finite(before), value, before)

    def _scalars(self, values: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, tf.Tensor]]:
        """Yield each name with its value as a float64 scalar."""
        for name, value in values:
            if not isinstance(name, str):
                raise self._refused(f"returns the key {name!r}, expected text")
            try:
                tensor = tf.convert_to_tensor(value)
            except (TypeError, ValueError) as error:
                kind = type(value).__name__
                raise self._refused(f"returns {name!r} as {kind}, expected a number") from error
            if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
                kind = tensor.dtype.name
                raise self._refused(f"returns {name!r} as {kind}, expected a number")
            if tensor.shape.num_elements() != 1:
                raise self._refused(
                    f"returns {name!r} of shape {tuple(tensor.shape)}, expected one number; return "
                    "its mean, or each number under its own key"
                )
            yield name, tf.cast(tf.reshape(tensor, ()), tf.float64)

    def _refused(self, problem: str) -> ContractError:
        return ContractError(
            f"model {self._model.name!r} cannot be trained: its {self._step} {problem}"
        )


def _flattened(logs: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the items of a dict and of the dicts in it, in the order of Keras."""
    for name, value in sorted(logs.items(), key=lambda item: str(item[0])):
        if isinstance(value, Mapping):
            yield from _flattened(value)
        else:
            yield name, value


def _variable() -> tf.Variable:
    """Create a variable outside the graph that is being traced."""
    with tf.init_scope():
        return tf.Variable(0.0, trainable=False, dtype=tf.float64)
