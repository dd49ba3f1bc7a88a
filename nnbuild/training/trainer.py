"""Fit: epochs over compiled steps, a history that grows by the epoch, and a state that can be picked up again.

What comes out is the same, bit for bit, whether the fit ran through or was stopped anywhere and resumed: the
state holds the weights, the optimizer, the seed generators, the running metrics, the callbacks and the history,
and the order of examples follows from the seed and the epoch.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

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
from nnbuild.training.loop import CompiledLoop
from nnbuild.training.shuffling import epoch_order, validation_split
from nnbuild.training.step_logs import LOSS

_LOOK_UP_SECONDS = 0.25


@dataclass
class StepsPerCall:
    """Learns how long a step takes; its answers change when the run looks up, never what it computes."""

    steps: int = 1

    def update(self, steps: int, seconds: float) -> None:
        """Take note of how long so many steps took."""
        wanted = int(steps * _LOOK_UP_SECONDS / max(seconds, 1e-6))
        # Growing tenfold at the most: the first call also traces the function, and the second does not.
        self.steps = max(1, min(wanted, steps * 10))


@dataclass
class FitContext:
    """What a fit touches beside the model; all of it may be left out.

    Attributes:
        progress: Callback for finished steps and epochs.
        checkpoints: where the state is kept, and found again.
        checkpoint_seconds: a checkpoint within an epoch at every so many seconds.
        on_history: is given the history table after every epoch.
        stop: the number of the signal that asks to stop, or None; asked between calls.
        now: the time, aware.
        tensorboard: folder for TensorBoard's logs.
        callbacks: Keras callbacks of the caller's own.
    """

    progress: ProgressCallback | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_seconds: float = 30.0
    on_history: Callable[[Any], None] = lambda _: None
    stop: Callable[[], int | None] = lambda: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    tensorboard: str | None = None
    callbacks: Sequence[Any] = ()


_VALIDATION_BATCH = 1024


@dataclass(frozen=True)
class Fitted:
    """How a fit went.

    Attributes:
        history: Keras's History: `history.history` has one list for each metric.
        table: the same as a table.
        weights_epoch: the epoch, from 1, whose weights the model has now.
        remarks: what a resume had to say.
    """

    history: Any
    table: Any
    weights_epoch: int
    remarks: tuple[str, ...]


def fit(
    model: Any,
    split: Split,
    config: RunConfig,
    classes: int,
    around: FitContext | None = None,
    *,
    seed: int | None = None,
    validation: Split | None = None,
) -> Fitted:
    """Fit a compiled model; modifies `model` in place.

    Args:
        model: compiled by `nnbuild.models.compile_model`.
        split: All training examples; without `validation`, some are drawn from them by the seed.
        config: resolved.
        classes: how many there are.
        around: what else is touched.
        seed: of the order of examples and of the augmentation; the config's, which draws the validation examples, if
            not given.
        validation: Examples to validate on, if the dataset has such a split.

    Raises:
        ContractError: The model's own training or test step cannot be used.
        ConfigError: A monitor is nothing that the model reports.
        DivergedError: the loss became infinite or not a number.
        Interrupted: a signal asked to stop; the state is kept if there are checkpoints.
        StoreError: the checkpoint that was found belongs to something else.
    """
    return _Fit(
        model,
        split,
        config,
        classes,
        around or FitContext(),
        seed=config.seed if seed is None else seed,
        validation=validation,
    ).run()


class _Fit:
    def __init__(
        self,
        model: Any,
        split: Split,
        config: RunConfig,
        classes: int,
        around: FitContext,
        *,
        seed: int,
        validation: Split | None,
    ) -> None:
        training = config.training
        self.model, self.seed, self.training, self.around = model, seed, training, around
        self.progress = around.progress or NullProgress()
        self.epochs = int(training.epochs or 1)
        self.rows, validated = validation_split(split, validation, config)
        self.validation_rows = len(validated)
        one_hot = training.target_form == "one-hot"
        batch = int(training.batch_size or 1)
        self.trainer = CompiledLoop(
            model,
            split,
            classes=classes,
            batch_size=batch,
            seed=seed,
            augment=training.augment or "none",
            one_hot=one_hot,
        )
        self.steps = self.trainer.count(len(self.rows))
        self.validator = CompiledLoop(
            model,
            validated,
            classes=classes,
            batch_size=batch if _tests_in_its_own_way(model) else max(batch, _VALIDATION_BATCH),
            one_hot=one_hot,
        )
        self.state = self._traced()
        self.watchers = [
            *keras_callbacks.configured(training, model, tensorboard=around.tensorboard),
            *around.callbacks,
        ]
        self.callbacks = keras.callbacks.CallbackList(
            self.watchers,
            add_history=True,
            model=model,
            verbose=0,
            epochs=self.epochs,
            steps=self.steps,
        )
        self.table_rows: list[dict[str, Any]] = []
        self.pace = StepsPerCall()

    def _traced(self) -> list[Any]:
        """Compile the steps, refuse monitors that they do not report, and return the variables they use."""
        trained, used = self.trainer.trace_train(len(self.rows))
        tested, used_by_tests = self.validator.trace_test(self.validation_rows)
        if LOSS not in trained:
            raise ContractError(
                f"model {self.model.name!r} cannot be trained: its train_step reports "
                f"{', '.join(sorted(trained)) or 'nothing'}, expected 'loss' among it, which is watched "
                "for NaN; return the loss that is minimised under that key"
            )
        _require_monitors(self.training, trained | {f"val_{name}" for name in tested})
        return [*used, *used_by_tests]

    def run(self) -> Fitted:
        self.model.stop_training = False
        self.callbacks.on_train_begin()
        epoch, step, seconds, remarks = self._resume()
        while epoch < self.epochs and not self.model.stop_training:
            self._run_epoch(epoch, step, seconds)
            epoch, step, seconds = epoch + 1, 0, 0.0
            self._save(epoch, step, seconds)
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        best = keras_callbacks.best_epoch(self.watchers)
        self.callbacks.on_train_end()
        return Fitted(
            self.model.history, tables.table(self.table_rows), best or epoch, tuple(remarks)
        )

    def _run_epoch(self, epoch: int, step: int, seconds: float) -> None:
        if step == 0:
            self.model.reset_metrics()
        self.callbacks.on_epoch_begin(epoch)
        began = time.perf_counter() - seconds
        metrics = self._train(epoch, step, began)
        # What is validated is what the callbacks keep, and what the fit ends with.
        with averaged(self.model):
            if (epoch + 1) % self.training.validation_freq == 0:
                validated = self.validator.test(_all_rows(self.validation_rows))
                metrics |= {f"val_{name}": value for name, value in validated.items()}
            metrics.setdefault("learning_rate", float(self.model.optimizer.learning_rate))
            with warnings.catch_warnings():
                # With validation at every so many epochs a monitor may have no value in this one. That is no news.
                warnings.filterwarnings("ignore", r".*conditioned on metric", UserWarning)
                self.callbacks.on_epoch_end(epoch, metrics)
        seconds = time.perf_counter() - began
        self.table_rows += tables.rows(epoch + 1, metrics, seconds, self.around.now())
        self.around.on_history(tables.table(self.table_rows))
        self.progress.epoch(epoch + 1, self.epochs, metrics, seconds)

    def _train(self, epoch: int, step: int, began: float) -> dict[str, float]:
        order = tf.constant(epoch_order(self.rows, self.seed, epoch))
        kept = time.perf_counter()
        metrics = (
            self.trainer.metrics()
        )  # of a stop right behind the epoch's last step, nothing else is left
        while step < self.steps:
            self.callbacks.on_train_batch_begin(step)
            first, step = step, min(step + self.pace.steps, self.steps)
            called = time.perf_counter()
            metrics = self.trainer.train(order, epoch, first, step)
            now = time.perf_counter()
            self.pace.update(step - first, now - called)
            _require_finite(metrics, epoch, first, step)
            self.callbacks.on_train_batch_end(step - 1, metrics)
            self.progress.step(epoch + 1, self.epochs, step, self.steps, metrics)
            signal_number = self.around.stop()
            if signal_number or (now - kept > self.around.checkpoint_seconds and step < self.steps):
                self._save(epoch, step, now - began)
                kept = now
            if signal_number:
                raise Interrupted(
                    f"stopped by signal {signal_number} in epoch {epoch + 1}", signal_number
                )
        return metrics

    def _save(self, epoch: int, step: int, seconds: float) -> None:
        if self.around.checkpoints is None:
            return
        numbers, arrays = keras_callbacks.state_of(self.watchers)
        self.around.checkpoints.save(
            Checkpoint(
                epoch=epoch,
                step=step,
                seconds=seconds,
                stopping=bool(self.model.stop_training),
                history=self.model.history.history,
                epochs=self.model.history.epoch,
                rows=tables.as_json(self.table_rows),
                callbacks=numbers,
                identity=self.around.checkpoints.identity,
                arrays=model_arrays(self.model, self.state) | arrays,
            )
        )

    def _resume(self) -> tuple[int, int, float, list[str]]:
        if self.around.checkpoints is None:
            return 0, 0, 0.0, []
        found, remarks = self.around.checkpoints.newest()
        if found is None:
            return 0, 0, 0.0, remarks
        restore_model(self.model, found.arrays, self.state)
        keras_callbacks.restore_state(self.watchers, found.callbacks, found.arrays)
        self.model.history.history, self.model.history.epoch = found.history, found.epochs
        self.model.stop_training = found.stopping
        self.table_rows = tables.from_json(found.rows)
        remarks.append(f"resumed at epoch {found.epoch + 1}, step {found.step}")
        return found.epoch, found.step, found.seconds, remarks


def _tests_in_its_own_way(model: Any) -> bool:
    """Whether a model overrides what its test step reports, which may then depend on the size of a batch."""
    return any(
        getattr(type(model), name) is not getattr(keras.Model, name)
        for name in ("test_step", "compute_loss", "compute_metrics")
    )


def _require_monitors(training: TrainingConfig, reported: Iterable[str]) -> None:
    for name in training.monitors():
        if name not in reported:
            raise ConfigError(
                f"monitor {name!r} is nothing that the model reports; {suggestion(name, reported)}"
            )


def _all_rows(count: int) -> Any:
    return tf.range(count)


def _require_finite(metrics: dict[str, float], epoch: int, first: int, last: int) -> None:
    if not math.isfinite(metrics[LOSS]):
        raise DivergedError(
            f"the loss became {metrics['loss']} in epoch {epoch + 1}, between steps {first + 1} and {last}; "
            "lower the learning rate, or look at the data"
        )
