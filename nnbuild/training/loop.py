"""Run many training or test steps in one compiled call, on tensors of images.

A small dense network spends most of its time between the steps, in Python and in the input
pipeline. Here the images are tensors, a step takes its rows by index, and one call of a
`tf.function` runs many steps. The tensors contain all images, or those of the next steps. Each
step is Keras's own `train_step` or `test_step`, so losses, metrics, optimizers and a model's
overrides work as in `fit`, and report the same. The number of steps per call does not change the
result.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.dataset import Split
from nnbuild.data.pixels import is_mapped
from nnbuild.errors import ContractError, NnbuildError, raised
from nnbuild.models.backbone import frozen_backbone
from nnbuild.runtime.tensorflow import keras, tf
from nnbuild.training.augmentation import AUGMENTATIONS
from nnbuild.training.image_source import Examples, MappedImages, ResidentImages

LOSS = "loss"
_SECONDS_PER_CALL = 0.25


@dataclass
class StepsPerCall:
    """Adaptive number of steps per compiled call: large to be fast, small to react to signals.

    Attributes:
        steps: Number of steps for the next call.
    """

    steps: int = 1

    def update(self, steps: int, seconds: float) -> None:
        """Update the number of steps after a call.

        Args:
            steps: Number of steps of the call.
            seconds: Duration of the call.
        """
        target = int(steps * _SECONDS_PER_CALL / max(seconds, 1e-6))
        # At most tenfold growth: the first call also traces the function, the second does not.
        self.steps = max(1, min(target, steps * 10))


class CompiledLoop:
    """Compiled training and test steps of a model on a set of images.

    Args:
        model: Compiled model.
        split: Images and labels.
        classes: Number of classes, for one-hot targets.
        batch_size: Images per step; an epoch's last step takes the remaining ones.
        seed: Seed of the augmentation.
        augment: Name in `AUGMENTATIONS`.
        one_hot: Whether the loss takes one-hot targets.
        freeze_epochs: Number of first epochs in which the models inside the model are not trained.
    """

    def __init__(
        self,
        model: keras.Model,
        split: Split,
        *,
        classes: int,
        batch_size: int,
        seed: int = 0,
        augment: str = "none",
        one_hot: bool = False,
        freeze_epochs: int = 0,
    ) -> None:
        self.model = model
        self._freeze_epochs = freeze_epochs
        source = MappedImages if is_mapped(split.images) else ResidentImages

        def as_targets(labels: tf.Tensor) -> tf.Tensor:
            return tf.one_hot(labels, classes) if one_hot else labels

        self._source = source(split, batch_size, as_targets)
        self._augment = AUGMENTATIONS[augment]
        self._batch_size = batch_size
        self._seed = tf.constant(seed, tf.int64)
        _keep_to_one_replica(model.optimizer)
        self._train = tf.function(self._train_steps, reduce_retracing=True, autograph=False)
        self._train_frozen = tf.function(self._train_steps, reduce_retracing=True, autograph=False)
        self._test = tf.function(self._test_steps, reduce_retracing=True, autograph=False)
        with self._users_code("its loss or its metrics"):
            self._create_variables()
            self._train_logs = StepLogs(model, "train_step", watch_loss=True)
            self._test_logs = StepLogs(model, "test_step", watch_loss=False)

    def trace_train(self) -> tuple[set[str], list[tf.Variable]]:
        """Compile the training steps, without running one.

        Returns:
            Names of the metrics that a step reports, and the variables that the steps use.

        Raises:
            ContractError: The model cannot be trained.
        """
        scalar = tf.TensorSpec((), tf.int32)
        specs = (self._source.example().specs(), tf.TensorSpec((), tf.int64), *3 * [scalar])
        with self._users_code("its train_step"):
            traced = self._train.get_concrete_function(*specs)
            if self._freeze_epochs:
                with frozen_backbone(self.model):  # its graph neither trains nor differentiates it
                    self._train_frozen.get_concrete_function(*specs)
        return set(traced.structured_outputs), _captured_variables(traced)

    def trace_test(self) -> tuple[set[str], list[tf.Variable]]:
        """Compile the test steps, without running one; see `trace_train`."""
        with self._users_code("its test_step"):
            traced = self._test.get_concrete_function(self._source.example().specs())
        return set(traced.structured_outputs), _captured_variables(traced)

    def train(
        self, order: NDArray[np.int32] | tf.Tensor, epoch: int, first: int, last: int
    ) -> dict[str, float]:
        """Run the steps `first` to `last - 1` of an epoch; modifies the model in place.

        Args:
            order: int32 rows of the epoch in order, shape (n,); the same object in every call for
                an epoch.
            epoch: Number of the epoch, from 0, for the augmentation.
            first: First step.
            last: Step after the last one.

        Returns:
            Metrics of the epoch so far.
        """
        train = self._train_frozen if epoch < self._freeze_epochs else self._train
        metrics: dict[str, Any] = {}
        for block in self._source.blocks(order, first, last):
            steps = block.first, max(first, block.first), min(last, block.last)
            metrics = train(block.examples, tf.constant(epoch, tf.int64), *map(tf.constant, steps))
        return _floats(metrics)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the training steps so far."""
        return _floats(self._train_logs.result())

    def test(self, rows: NDArray[np.int32] | tf.Tensor) -> dict[str, float]:
        """Return the metrics of the test steps on some rows; resets the model's metrics first.

        Args:
            rows: int32 numbers of the examples, shape (n,).
        """
        self.model.reset_metrics()
        metrics: dict[str, Any] = {}
        for block in self._source.blocks(rows, 0, self.count(len(rows))):
            metrics = self._test(block.examples)
        return _floats(metrics)

    def count(self, examples: int) -> int:
        """Return the number of steps for a number of examples."""
        return -(-examples // self._batch_size)

    def _train_steps(
        self,
        examples: Examples,
        epoch: tf.Tensor,
        offset: tf.Tensor,
        first: tf.Tensor,
        last: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Run training steps; see `train`. `offset` is the step of the first of the rows."""
        images, targets, rows = examples

        def run(step: tf.Tensor) -> None:
            chosen = _rows_of(rows, step - offset, self._batch_size)
            batch, labels = tf.gather(images, chosen), tf.gather(targets, chosen)
            high = tf.bitwise.left_shift(epoch, tf.constant(32, tf.int64))
            seed = tf.stack([self._seed, high + tf.cast(step, tf.int64)])
            self._train_logs.record(self.model.train_step((self._augment(batch, seed), labels)))

        _repeat(run, first, last)
        return self._train_logs.result()

    def _test_steps(self, examples: Examples) -> dict[str, tf.Tensor]:
        images, targets, rows = examples

        def run(step: tf.Tensor) -> None:
            chosen = _rows_of(rows, step, self._batch_size)
            batch = tf.gather(images, chosen), tf.gather(targets, chosen)
            self._test_logs.record(self.model.test_step(batch))

        _repeat(run, tf.constant(0), -(-tf.size(rows) // self._batch_size))
        return self._test_logs.result()

    def _create_variables(self) -> None:
        """Create the variables of the optimizer and the metrics; a compiled function cannot.

        Nothing else changes: variables that a layer updates when it is called are restored.
        """
        images, targets, _ = self._source.example().examples
        before = [(variable, tf.identity(variable)) for variable in self.model.variables]
        logits = self.model(images, training=False)
        self.model.compute_loss(x=images, y=targets, y_pred=logits)
        self.model.compute_metrics(images, targets, logits)
        self.model.reset_metrics()
        for variable, value in before:
            variable.assign(value)
        if not self.model.optimizer.built:  # a loss scale would be created twice
            self.model.optimizer.build(self.model.trainable_variables)

    @contextmanager
    def _users_code(self, what: str) -> Iterator[None]:
        """Convert errors that the model's own methods raise."""
        try:
            yield
        except (NnbuildError, MemoryError, tf.errors.ResourceExhaustedError):
            raise
        except (Exception, SystemExit) as error:
            raise ContractError(
                f"model {self.model.name!r} cannot be trained: {what} raised {raised(error)}"
            ) from error


def _keep_to_one_replica(optimizer: keras.optimizers.Optimizer) -> None:
    """Skip the sum of gradients over replicas, since there is one; modifies the optimizer in place.

    Keras sums them with an operation whose gradient TensorFlow keeps for the life of the process,
    and with it the whole graph of the training step: 4 MiB for each run in the process.
    """
    # An optimizer that scales the loss has another one inside.
    for each in (optimizer, getattr(optimizer, "inner_optimizer", None)):
        if each is not None:
            each._all_reduce_sum_gradients = list  # noqa: SLF001  (Keras has no public way)


def _rows_of(rows: tf.Tensor, step: tf.Tensor, batch_size: int) -> tf.Tensor:
    """Return the rows of a step."""
    return rows[step * batch_size : (step + 1) * batch_size]


def _repeat(run: Callable[[tf.Tensor], None], first: tf.Tensor, last: tf.Tensor) -> None:
    """Run steps in a loop of the graph, which does not rely on AutoGraph."""

    def body(step: tf.Tensor) -> tuple[tf.Tensor]:
        run(step)
        return (step + 1,)

    tf.while_loop(lambda step: step < last, body, (first,), parallel_iterations=1)


def _captured_variables(traced: Any) -> list[tf.Variable]:
    """Return the variables that a traced function uses, in the order of their first use."""
    handles = {id(variable.handle): variable for variable in traced.variables}
    used = [handles[id(each)] for each in traced.captured_inputs if id(each) in handles]
    return list({id(variable): variable for variable in used}.values())


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


class StepLogs:
    """Values that a model's steps return.

    Keras's `fit` reports the model's metrics if a step returns exactly those keys, and otherwise
    what the last step returned. A compiled loop returns nothing from its steps, so the values that
    the last step returned are stored in variables, which are created when the step is traced.

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
