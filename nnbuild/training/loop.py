"""Many steps in one compiled call, over images that already lie in TensorFlow's memory.

A small dense network spends most of its time between the steps, in Python and in the input pipeline. Here
the images are tensors, a step takes its rows by index, and one call of a `tf.function` makes as many steps as
it is told. Each step is Keras's own `train_step` or `test_step`, so losses, metrics, optimizers and a model's
overrides are what they are under `fit`, and so is what the steps report. How many steps share a call changes
nothing in the result.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.dataset import Split
from nnbuild.errors import ContractError, NnbuildError, raised
from nnbuild.runtime.tensorflow import tf
from nnbuild.training.augmentation import AUGMENTATIONS
from nnbuild.training.step_logs import StepLogs


class CompiledLoop:
    """The steps of one model on one set of images.

    Args:
        model: compiled.
        split: the images and labels.
        classes: how many there are, for one-hot targets.
        batch_size: images per step; an epoch's last step takes what is left.
        seed: of the augmentation.
        augment: a name of `AUGMENTATIONS`.
        one_hot: whether the loss takes one-hot rows.
    """

    def __init__(
        self,
        model: Any,
        split: Split,
        *,
        classes: int,
        batch_size: int,
        seed: int = 0,
        augment: str = "none",
        one_hot: bool = False,
    ) -> None:
        self.model = model
        self._images = tf.constant(split.images)
        labels = tf.constant(split.labels.astype(np.int32))
        self._targets = tf.one_hot(labels, classes) if one_hot else labels
        self._augment = AUGMENTATIONS[augment]
        self._batch_size = batch_size
        self._seed = tf.constant(seed, tf.int64)
        _keep_to_one_replica(model.optimizer)
        self._train = tf.function(self._train_steps, reduce_retracing=True, autograph=False)
        self._test = tf.function(self._test_steps, reduce_retracing=True, autograph=False)
        with self._users_code("its loss or its metrics"):
            self._create_variables()
            self._train_logs = StepLogs(model, "train_step", watch_loss=True)
            self._test_logs = StepLogs(model, "test_step", watch_loss=False)

    def trace_train(self, examples: int) -> tuple[set[str], list[Any]]:
        """Compile the training steps, without making one.

        Args:
            examples: Rows of an epoch.

        Returns:
            The names of what a step reports, and the variables that the steps use.

        Raises:
            ContractError: The model cannot be trained.
        """
        scalar = tf.TensorSpec((), tf.int32)
        rows, epoch = tf.TensorSpec((examples,), tf.int32), tf.TensorSpec((), tf.int64)
        with self._users_code("its train_step"):
            traced = self._train.get_concrete_function(rows, epoch, scalar, scalar)
        return set(traced.structured_outputs), _captured_variables(traced)

    def trace_test(self, examples: int) -> tuple[set[str], list[Any]]:
        """Compile the test steps, without making one; as `trace_train`."""
        with self._users_code("its test_step"):
            traced = self._test.get_concrete_function(tf.TensorSpec((examples,), tf.int32))
        return set(traced.structured_outputs), _captured_variables(traced)

    def train(self, order: Any, epoch: int, first: int, last: int) -> dict[str, float]:
        """Make the steps first to last - 1 of an epoch; modifies the model in place.

        Args:
            order: int32 tensor, the epoch's rows in order.
            epoch: from 0, for the augmentation.
            first: the first step.
            last: the step after the last.

        Returns:
            What the steps report so far in this epoch.
        """
        return _floats(
            self._train(order, tf.constant(epoch, tf.int64), tf.constant(first), tf.constant(last))
        )

    def metrics(self) -> dict[str, float]:
        """Return what the training steps report so far."""
        return _floats(self._train_logs.result())

    def test(self, rows: NDArray[np.int32]) -> dict[str, float]:
        """Return what the test steps report of some rows; resets the model's metrics first.

        Args:
            rows: int32, shape (n,), of the images.
        """
        self.model.reset_metrics()
        return _floats(self._test(tf.constant(rows)))

    def count(self, examples: int) -> int:
        """How many steps it takes to go through so many examples."""
        return -(-examples // self._batch_size)

    def _batch(self, rows: Any, step: Any) -> tuple[Any, Any]:
        chosen = rows[step * self._batch_size : (step + 1) * self._batch_size]
        return tf.gather(self._images, chosen), tf.gather(self._targets, chosen)

    def _train_steps(self, order: Any, epoch: Any, first: Any, last: Any) -> Any:
        def make(step: Any) -> None:
            images, targets = self._batch(order, step)
            high = tf.bitwise.left_shift(epoch, tf.constant(32, tf.int64))
            seed = tf.stack([self._seed, high + tf.cast(step, tf.int64)])
            self._train_logs.record(self.model.train_step((self._augment(images, seed), targets)))

        _repeat(make, first, last)
        return self._train_logs.result()

    def _test_steps(self, rows: Any) -> Any:
        def make(step: Any) -> None:
            self._test_logs.record(self.model.test_step(self._batch(rows, step)))

        _repeat(make, tf.constant(0), -(-tf.size(rows) // self._batch_size))
        return self._test_logs.result()

    def _create_variables(self) -> None:
        """Let the optimizer and the metrics make their variables now: a compiled function must not.

        Nothing else changes: what a layer updates at a call, as batch norm does where a layer before
        it is in training mode, is put back.
        """
        images, targets = self._images[:1], self._targets[:1]
        before = [(variable, tf.identity(variable)) for variable in self.model.variables]
        logits = self.model(images, training=False)
        self.model.compute_loss(x=images, y=targets, y_pred=logits)
        self.model.compute_metrics(images, targets, logits)
        self.model.reset_metrics()
        for variable, value in before:
            variable.assign(value)
        if not self.model.optimizer.built:  # a loss scale would be made twice
            self.model.optimizer.build(self.model.trainable_variables)

    @contextmanager
    def _users_code(self, what: str) -> Iterator[None]:
        """Report what a model's own methods raise as a model that cannot be trained."""
        try:
            yield
        except (NnbuildError, MemoryError, tf.errors.ResourceExhaustedError):
            raise
        except (Exception, SystemExit) as error:
            raise ContractError(
                f"model {self.model.name!r} cannot be trained: {what} raised {raised(error)}"
            ) from error


def _keep_to_one_replica(optimizer: Any) -> None:
    """Let an optimizer take its gradients as they are, since there is one replica; modifies it in place.

    Keras sums them over all replicas, by an operation whose gradient TensorFlow keeps for the life of the process, and
    with it the whole graph of the training step: 4 MiB of each run of a process that makes many. The sum is the same.
    """
    for each in (
        optimizer,
        getattr(optimizer, "inner_optimizer", None),
    ):  # a loss scale has one inside
        if each is not None:
            each._all_reduce_sum_gradients = list  # noqa: SLF001  (Keras has no public way)


def _repeat(make: Callable[[Any], None], first: Any, last: Any) -> None:
    """The loop, as an operation of the graph: no rewriting of Python source has to work for it."""

    def body(step: Any) -> Any:
        make(step)
        return (step + 1,)

    tf.while_loop(lambda step: step < last, body, (first,), parallel_iterations=1)


def _captured_variables(traced: Any) -> list[Any]:
    """The variables that a traced function uses, in the order of their first use."""
    handles = {id(variable.handle): variable for variable in traced.variables}
    used = [handles[id(each)] for each in traced.captured_inputs if id(each) in handles]
    return list({id(variable): variable for variable in used}.values())


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
