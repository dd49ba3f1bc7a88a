"""Fit a model: epochs of compiled steps, callbacks, checkpoints, and exact resumption.

The result is the same to the last bit whether the fit ran through or was stopped anywhere and
resumed: a checkpoint has the weights, the optimizer, the seed generators, the running metrics, the
callbacks and the history, and the order of the examples follows from seed and epoch.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from nnbuild.config.schema import RunConfig
from nnbuild.config.sections import TrainingConfig
from nnbuild.data.dataset import Split
from nnbuild.errors import ConfigError, ContractError, DivergedError, Interrupted, suggestion
from nnbuild.runtime.progress import NullProgress, ProgressCallback
from nnbuild.runtime.tensorflow import keras, tf
from nnbuild.training import callbacks as keras_callbacks
from nnbuild.training import history as tables
from nnbuild.training.callbacks import averaged
from nnbuild.training.checkpoint import Checkpoint, Checkpoints, model_arrays, restore_model
from nnbuild.training.loop import LOSS, CompiledLoop, StepsPerCall
from nnbuild.training.shuffling import epoch_order, validation_split

_VALIDATION_BATCH = 1024


@dataclass
class FitContext:
    """Optional surroundings of a fit.

    Attributes:
        progress: Callback for finished steps and epochs.
        checkpoints: Checkpoints to resume from and to add to.
        checkpoint_seconds: Seconds between checkpoints within an epoch.
        on_history: Function that gets the history table so far after every epoch.
        stop: Function that returns the number of the signal that asks to stop, or None; it is
            called between compiled calls.
        now: Function that returns the aware current time.
        tensorboard: Folder for TensorBoard's logs.
        callbacks: Further Keras callbacks.
    """

    progress: ProgressCallback | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_seconds: float = 30.0
    on_history: Callable[[pa.Table], None] = lambda _: None
    stop: Callable[[], int | None] = lambda: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    tensorboard: str | None = None
    callbacks: Sequence[keras.callbacks.Callback] = ()


@dataclass(frozen=True)
class Fitted:
    """Result of a fit.

    Attributes:
        history: Keras's History; `history.history` has a list for each metric.
        table: The same as a table with the schema of `history`.
        weights_epoch: Epoch, from 1, whose weights the model has now.
        remarks: Remarks on how the fit was resumed.
    """

    history: keras.callbacks.History
    table: pa.Table
    weights_epoch: int
    remarks: tuple[str, ...]


def fit(
    model: keras.Model,
    split: Split,
    config: RunConfig,
    classes: int,
    context: FitContext | None = None,
    *,
    seed: int | None = None,
    validation: Split | None = None,
) -> Fitted:
    """Fit a compiled model; modifies `model` in place.

    Args:
        model: Model compiled by `nnbuild.models.compile_model`.
        split: All training examples; without `validation`, some are drawn for it by the seed.
        config: Resolved configuration; its seed draws the validation examples.
        classes: Number of classes.
        context: Progress, checkpoints and other surroundings.
        seed: Seed of the order of examples and of the augmentation; that of `config` if None.
        validation: Validation examples, if the dataset has such a split.

    Returns:
        History of the fit, and the epoch whose weights the model has.

    Raises:
        ContractError: The model's own training or test step cannot be used.
        ConfigError: The model does not report a metric that is monitored.
        DivergedError: The loss became infinite or NaN.
        Interrupted: A signal asked to stop; the state is saved if there are checkpoints.
        StoreError: The checkpoint belongs to another configuration, dataset or code.
    """
    return _Fit(
        model,
        split,
        config,
        classes,
        context or FitContext(),
        seed=config.seed if seed is None else seed,
        validation=validation,
    ).run()


class _Fit:
    """A fit in progress; the arguments are those of `fit`."""

    def __init__(
        self,
        model: keras.Model,
        split: Split,
        config: RunConfig,
        classes: int,
        context: FitContext,
        *,
        seed: int,
        validation: Split | None,
    ) -> None:
        training = config.training
        self.model, self.seed, self.training, self.context = model, seed, training, context
        self.progress = context.progress or NullProgress()
        self.epochs = int(training.epochs or 1)
        self.rows, held_out = validation_split(split, validation, config)
        self.validation_rows = len(held_out)
        one_hot = training.label_encoding == "one-hot"
        batch = int(training.batch_size or 1)
        self.training_loop = CompiledLoop(
            model,
            split,
            classes=classes,
            batch_size=batch,
            seed=seed,
            augment=training.augmentation or "none",
            one_hot=one_hot,
            freeze_epochs=training.freeze_epochs,
        )
        self.steps = self.training_loop.count(len(self.rows))
        self.validation_loop = CompiledLoop(
            model,
            held_out,
            classes=classes,
            batch_size=batch if _has_own_test_step(model) else max(batch, _VALIDATION_BATCH),
            one_hot=one_hot,
        )
        self.variables = self._trace()
        self.callbacks = [
            *keras_callbacks.configured(training, model, tensorboard=context.tensorboard),
            *context.callbacks,
        ]
        self.callback_list = keras.callbacks.CallbackList(
            self.callbacks,
            add_history=True,
            model=model,
            verbose=0,
            epochs=self.epochs,
            steps=self.steps,
        )
        self.table_rows: list[dict[str, Any]] = []
        self.steps_per_call = StepsPerCall()

    def _trace(self) -> list[tf.Variable]:
        """Compile the steps, refuse unknown monitors, and return the variables of the steps."""
        trained, used = self.training_loop.trace_train()
        tested, used_by_tests = self.validation_loop.trace_test()
        if LOSS not in trained:
            raise ContractError(
                f"model {self.model.name!r} cannot be trained: its train_step reports "
                f"{', '.join(sorted(trained)) or 'nothing'}, expected 'loss' too, which is checked "
                "for NaN; return the minimised loss under that key"
            )
        _require_monitors(self.training, trained | {f"val_{name}" for name in tested})
        return [*used, *used_by_tests]

    def run(self) -> Fitted:
        """Run the fit from its start or its newest checkpoint to its end."""
        self.model.stop_training = False
        self.callback_list.on_train_begin()
        epoch, step, seconds, remarks = self._resume()
        while epoch < self.epochs and not self.model.stop_training:
            self._run_epoch(epoch, step, seconds)
            epoch, step, seconds = epoch + 1, 0, 0.0
            self._save(epoch, step, seconds)
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        best = keras_callbacks.best_epoch(self.callbacks)
        self.callback_list.on_train_end()
        return Fitted(
            self.model.history, tables.table(self.table_rows), best or epoch, tuple(remarks)
        )

    def _run_epoch(self, epoch: int, step: int, seconds: float) -> None:
        if step == 0:
            self.model.reset_metrics()
        self.callback_list.on_epoch_begin(epoch)
        began = time.perf_counter() - seconds
        metrics = self._train(epoch, step, began)
        # The averaged weights are validated, restored by callbacks, and final.
        with averaged(self.model):
            if (epoch + 1) % self.training.validation_freq == 0:
                rows = np.arange(self.validation_rows, dtype=np.int32)
                validation = self.validation_loop.test(rows)
                metrics |= {f"val_{name}": value for name, value in validation.items()}
            metrics.setdefault("learning_rate", float(self.model.optimizer.learning_rate))
            with warnings.catch_warnings():
                # With `validation_freq`, an epoch without validation has no value to monitor.
                warnings.filterwarnings("ignore", r".*conditioned on metric", UserWarning)
                self.callback_list.on_epoch_end(epoch, metrics)
        seconds = time.perf_counter() - began
        self.table_rows += tables.rows(epoch + 1, metrics, seconds, self.context.now())
        self.context.on_history(tables.table(self.table_rows))
        self.progress.epoch(epoch + 1, self.epochs, metrics, seconds)

    def _train(self, epoch: int, step: int, began: float) -> dict[str, float]:
        order = epoch_order(self.rows, self.seed, epoch)
        saved_at = time.perf_counter()
        # A fit that was stopped right after the last step of an epoch has no more steps to report.
        metrics = self.training_loop.metrics()
        while step < self.steps:
            self.callback_list.on_train_batch_begin(step)
            first, step = step, min(step + self.steps_per_call.steps, self.steps)
            called = time.perf_counter()
            metrics = self.training_loop.train(order, epoch, first, step)
            now = time.perf_counter()
            self.steps_per_call.update(step - first, now - called)
            _require_finite(metrics, epoch, first, step)
            self.callback_list.on_train_batch_end(step - 1, metrics)
            self.progress.step(epoch + 1, self.epochs, step, self.steps, metrics)
            signal_number = self.context.stop()
            is_due = now - saved_at > self.context.checkpoint_seconds and step < self.steps
            if signal_number or is_due:
                self._save(epoch, step, now - began)
                saved_at = now
            if signal_number:
                raise Interrupted(
                    f"stopped by signal {signal_number} in epoch {epoch + 1}", signal_number
                )
        return metrics

    def _save(self, epoch: int, step: int, seconds: float) -> None:
        if self.context.checkpoints is None:
            return
        numbers, arrays = keras_callbacks.state_of(self.callbacks)
        self.context.checkpoints.save(
            Checkpoint(
                epoch=epoch,
                step=step,
                seconds=seconds,
                stopping=bool(self.model.stop_training),
                history=self.model.history.history,
                epochs=self.model.history.epoch,
                rows=tables.as_json(self.table_rows),
                callbacks=numbers,
                identity=self.context.checkpoints.identity,
                arrays=model_arrays(self.model, self.variables) | arrays,
            )
        )

    def _resume(self) -> tuple[int, int, float, list[str]]:
        """Restore the newest checkpoint, if there is one.

        Returns:
            Epoch (from 0) and step to begin with, seconds spent on the epoch so far, and remarks.
        """
        if self.context.checkpoints is None:
            return 0, 0, 0.0, []
        checkpoint, remarks = self.context.checkpoints.newest()
        if checkpoint is None:
            return 0, 0, 0.0, remarks
        restore_model(self.model, checkpoint.arrays, self.variables)
        keras_callbacks.restore_state(self.callbacks, checkpoint.callbacks, checkpoint.arrays)
        self.model.history.history, self.model.history.epoch = checkpoint.history, checkpoint.epochs
        self.model.stop_training = checkpoint.stopping
        self.table_rows = tables.from_json(checkpoint.rows)
        remarks.append(
            f"resumed at epoch {checkpoint.epoch + 1}, step {checkpoint.step}"
            if checkpoint.epoch < self.epochs
            else "resumed after the last epoch"
        )
        return checkpoint.epoch, checkpoint.step, checkpoint.seconds, remarks


def _has_own_test_step(model: keras.Model) -> bool:
    """Return whether a model has its own test step, which may depend on the batch size."""
    return any(
        getattr(type(model), name) is not getattr(keras.Model, name)
        for name in ("test_step", "compute_loss", "compute_metrics")
    )


def _require_monitors(training: TrainingConfig, reported: Iterable[str]) -> None:
    for name in training.monitors():
        if name not in reported:
            raise ConfigError(
                f"monitor {name!r} is not a metric that the model reports; "
                f"{suggestion(name, reported)}"
            )


def _require_finite(metrics: dict[str, float], epoch: int, first: int, last: int) -> None:
    if not math.isfinite(metrics[LOSS]):
        raise DivergedError(
            f"the loss became {metrics[LOSS]} in epoch {epoch + 1}, between steps {first + 1} and "
            f"{last}; lower the learning rate, or check the data"
        )
