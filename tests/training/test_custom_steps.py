"""Models with their own training and test steps.

Their history equals that of Keras's `fit`, or they are refused before the fit.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from small_fit import (
    CLASSES,
    ONE_STEP_PER_CALL,
    StopAfter,
    config_of,
    run_through,
    same,
    small_split,
)

from nnbuild import models
from nnbuild.errors import ConfigError, ContractError, DivergedError, Interrupted
from nnbuild.models import seeded
from nnbuild.training import Checkpoints, FitContext, fit
from nnbuild.training.loop import CompiledLoop
from nnbuild.training.shuffling import split_rows


def cross_entropy(y, logits):
    return ops.mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))


class Custom(keras.Model):
    """Model with its own steps; subclasses define what these return."""

    def penalised(self, x, y):
        logits = self(x, training=True)
        return logits, cross_entropy(y, logits) + 1e-3 * ops.mean(ops.square(logits))

    def learn(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            logits, loss = self.penalised(x, y)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return y, logits, loss


class OnlyLoss(Custom):
    def train_step(self, data):
        return {"loss": self.learn(data)[2]}


class ExtraKeys(Custom):
    def train_step(self, data):
        y, logits, loss = self.learn(data)
        return {"loss": loss, "spread": ops.std(logits), "images": ops.shape(y)[0]}

    def test_step(self, data):
        x, y = data
        return {"loss": cross_entropy(y, self(x, training=False)), "images": ops.shape(y)[0]}


class Nested(Custom):
    def train_step(self, data):
        _, logits, loss = self.learn(data)
        return {
            "parts": {"spread": ops.std(logits), "more": {"top": ops.max(logits)}},
            "loss": loss,
        }


class PythonNumbers(Custom):
    def train_step(self, data):
        return {"loss": self.learn(data)[2], "half": 0.1, "three": 3, "numpy": np.float64(0.1)}


class NoTestLogs(Custom):
    def train_step(self, data):
        return {"loss": self.learn(data)[2]}

    def test_step(self, data):
        self(data[0], training=False)
        return {}


class Tracked(Custom):
    """Model that lists its own metric objects."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.total = keras.metrics.Mean(name="loss")
        self.right = keras.metrics.SparseCategoricalAccuracy(name="right")

    @property
    def metrics(self):
        return [self.total, self.right]

    def train_step(self, data):
        y, logits, loss = self.learn(data)
        self.total.update_state(loss)
        self.right.update_state(y, logits)
        return {each.name: each.result() for each in self.metrics}

    def test_step(self, data):
        x, y = data
        logits = self(x, training=False)
        self.total.update_state(cross_entropy(y, logits))
        self.right.update_state(y, logits)
        return {each.name: each.result() for each in self.metrics}


class OnlyInTests(Custom):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.right = keras.metrics.SparseCategoricalAccuracy(name="right")

    def train_step(self, data):
        return {"loss": self.learn(data)[2]}

    def test_step(self, data):
        x, y = data
        logits = self(x, training=False)
        self.right.update_state(y, logits)
        return {"loss": cross_entropy(y, logits), "right": self.right.result()}


class Unlisted(Custom):
    """Model that updates a metric and a counter that Keras does not list."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = keras.metrics.Sum(name="seen")
        self.count = tf.Variable(0, trainable=False)

    @property
    def metrics(self):
        return []

    def train_step(self, data):
        y, _, loss = self.learn(data)
        self.seen.update_state(ops.shape(y)[0])
        self.count.assign_add(1)
        return {"loss": loss, "seen": self.seen.result(), "count": self.count}

    def test_step(self, data):
        x, y = data
        return {"loss": cross_entropy(y, self(x, training=False)), "count": self.count}


class KerasSteps(Custom):
    """Model with Keras's steps and a layer that adds to the loss."""


class AddedLoss(Custom):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = cross_entropy(y, self(x, training=True)) + sum(self.losses)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


class OwnLoss(Custom):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: ARG002, FBT002
        return cross_entropy(y, y_pred) * 2.0


class OwnMetrics(Custom):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        found = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**found, "top": ops.max(y_pred)}


SOUND = [
    OnlyLoss,
    ExtraKeys,
    Nested,
    PythonNumbers,
    Tracked,
    OnlyInTests,
    Unlisted,
    KerasSteps,
    AddedLoss,
    OwnLoss,
    OwnMetrics,
]


@seeded(5)
def network(kind, config):
    pixels = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(12, "relu", activity_regularizer=keras.regularizers.L2(1e-3))(
        keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))
    )
    model = kind(pixels, keras.layers.Dense(CLASSES)(hidden))
    models.compile_model(model, config.training, steps=24)
    return model


@pytest.mark.parametrize("kind", SOUND)
def test_custom_model_history_equals_keras(kind, monkeypatch):
    """The same batches in the same order give the same keys and values."""
    split, config = small_split(), config_of(epochs=2)
    monkeypatch.setattr("nnbuild.training.trainer.epoch_order", lambda rows, *_: rows)
    found = fit(network(kind, config), split, config, CLASSES).history.history
    rows, held_out = split_rows(len(split), config.training.validation_fraction, config.seed)
    labels = split.labels.astype(np.int32)
    keras_model = network(kind, config)
    # Keras's fit raises an error if a custom step does not use the compiled metrics.
    keras_model.compute_metrics(None, labels[:1], keras_model(split.images[:1]))
    wanted = keras_model.fit(
        split.images[rows],
        labels[rows],
        batch_size=16,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=(split.images[held_out], labels[held_out]),
    )
    found.pop("learning_rate")
    assert found.keys() == wanted.history.keys()
    for name, values in wanted.history.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name


def test_empty_test_step_is_accepted():
    config = config_of()
    fitted = fit(network(NoTestLogs, config), small_split(), config, CLASSES)
    assert list(fitted.history.history) == ["learning_rate", "loss"]


@pytest.mark.parametrize("kind", [Unlisted, Nested, Tracked])
def test_custom_model_resumes_exactly(kind, tmp_path, monkeypatch):
    split, config = small_split(), config_of(epochs=2)

    def run(**around):
        checkpoints = Checkpoints(tmp_path, {"config": config.digest()}) if around else None
        model = network(kind, config)
        around = FitContext(checkpoints=checkpoints, **around)
        return model, fit(model, split, config, CLASSES, around)

    straight, expected = run()
    monkeypatch.setattr(*ONE_STEP_PER_CALL)
    for looks in (2, 3, 4):  # the last one right after the last step of an epoch
        with pytest.raises(Interrupted):
            run(stop=StopAfter(looks))
    resumed, found = run(stop=lambda: None)
    assert same(straight, resumed)
    assert found.history.history == expected.history.history


class NoLoss(Custom):
    def train_step(self, data):
        return {"spread": ops.std(self.learn(data)[1])}


class ReturnsNothing(Custom):
    def train_step(self, data):
        self.learn(data)


class ReturnsList(Custom):
    def train_step(self, data):
        return [self.learn(data)[2]]


class Vector(Custom):
    def train_step(self, data):
        _, logits, loss = self.learn(data)
        return {"loss": loss, "by_class": ops.mean(logits, axis=0)}


class Text(Custom):
    def train_step(self, data):
        return {"loss": self.learn(data)[2], "note": "fine"}


class NotANumber(Custom):
    def train_step(self, data):
        return {"loss": self.learn(data)[2], "note": None}


class ListsNoLoss(Custom):
    """Model with Keras's train_step that does not list the loss among its metrics."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.right = keras.metrics.SparseCategoricalAccuracy(name="right")

    @property
    def metrics(self):
        return [self.right]


class VectorMetric(Custom):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.by_class = keras.metrics.MeanTensor(name="by_class", shape=(CLASSES,))


class Raises(Custom):
    def train_step(self, data):  # noqa: ARG002
        raise KeyError("no such thing")


class RaisesInTests(Custom):
    def test_step(self, data):  # noqa: ARG002
        raise KeyError("no such thing")


class MetricsRaise(Custom):
    @property
    def metrics(self):
        if self.built and self.compiled:
            raise RuntimeError("not yet")
        return []


class UsesNumpy(Custom):
    def train_step(self, data):
        return {"loss": float(self.learn(data)[2].numpy())}


UNSOUND = {
    NoLoss: r"train_step reports spread, expected 'loss' too",
    ReturnsNothing: r"train_step returns NoneType, expected a dict",
    ReturnsList: r"train_step returns list, expected a dict",
    Vector: r"train_step returns 'by_class' of shape \(3,\), expected one number",
    Text: r"train_step returns 'note' as string, expected a number",
    NotANumber: r"train_step returns 'note' as NoneType, expected a number",
    ListsNoLoss: r"train_step reports right, expected 'loss'",
    Raises: r"its train_step raised KeyError: 'no such thing' \(test_custom_steps.py, line \d+\)",
    RaisesInTests: r"its test_step raised KeyError: 'no such thing' \(test_custom_steps.py",
    MetricsRaise: r"raised RuntimeError: not yet",
    UsesNumpy: r"its train_step raised \w+: .*numpy",
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_unusable_step_raises(kind):
    config = config_of()
    model = network(kind, config)
    before = [weight.copy() for weight in model.get_weights()]
    with pytest.raises(ContractError, match=UNSOUND[kind]) as caught:
        fit(model, small_split(), config, CLASSES)
    assert "\n" not in str(caught.value)
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))


class OnceNaN(Custom):
    """Model that reports a NaN loss at its second step only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.step = tf.Variable(0, trainable=False)

    def train_step(self, data):
        loss = self.learn(data)[2]
        self.step.assign_add(1)
        return {"loss": tf.where(self.step == 2, np.nan, loss)}


def test_single_nan_loss_raises():
    config = config_of()
    with pytest.raises(DivergedError, match="loss became nan in epoch 1"):
        fit(network(OnceNaN, config), small_split(), config, CLASSES)


class Rising(Custom):
    """Model whose validation loss always rises."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.step = tf.Variable(0.0, trainable=False)

    def train_step(self, data):
        self.step.assign_add(1.0)
        return {"loss": self.learn(data)[2]}

    def test_step(self, data):
        return {"loss": self.step + 0 * ops.mean(self(data[0], training=False))}


def test_callbacks_use_step_values():
    config = config_of(
        epochs=9,
        early_stopping={"monitor": "val_loss", "patience": 2},
        restore_best_weights="val_loss",
    )
    fitted = fit(network(Rising, config), small_split(), config, CLASSES)
    assert len(fitted.history.epoch) == 3
    assert fitted.weights_epoch == 1


@pytest.mark.parametrize(
    ("kind", "monitor", "says"),
    [
        (NoTestLogs, "val_loss", "monitor 'val_loss' is not a metric that the model reports"),
        (Tracked, "val_accuracy", "monitor 'val_accuracy' is not a metric"),
        (ExtraKeys, "spread", "monitor 'spread': whether it should rise or fall is not known"),
    ],
)
def test_unusable_monitor_raises(kind, monitor, says):
    config = config_of(model="mine:build", restore_best_weights=monitor)
    with pytest.raises(ConfigError, match=says):
        fit(network(kind, config), small_split(), config, CLASSES)


def test_keras_metric_has_direction():
    config = config_of(
        model="mine:build", epochs=5, learning_rate=0.01, restore_best_weights="val_right"
    )
    fitted = fit(network(Tracked, config), small_split(), config, CLASSES)
    rights = fitted.history.history["val_right"]
    assert fitted.weights_epoch == int(np.argmax(rights)) + 1


def test_build_keeps_batch_statistics():
    split = small_split()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Resizing(6, 6),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES),
        ]
    )
    models.compile_model(model, config_of().training, steps=24)
    before = [weight.copy() for weight in model.get_weights()]
    CompiledLoop(model, split, classes=CLASSES, batch_size=16)
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))


def test_named_networks_metrics_are_same():
    _, fitted = run_through(config_of(), small_split())
    assert list(fitted.history.history) == [
        "accuracy",
        "learning_rate",
        "loss",
        "val_accuracy",
        "val_loss",
    ]
