"""The fit learns, is reproducible, and resumes from anywhere to the same bytes."""

import gc
import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_fit import (
    CLASSES,
    ONE_STEP_PER_CALL,
    StopAfter,
    compiled,
    config_of,
    run_through,
    same,
    small_split,
)

from nnbuild import models
from nnbuild.config.presets import PRESETS
from nnbuild.errors import DivergedError, Interrupted, StoreError
from nnbuild.models.multi_column import multi_column
from nnbuild.runtime.tensorflow import keras, tf
from nnbuild.training import Checkpoints, FitContext, fit
from nnbuild.training.shuffling import split_rows

EVERYTHING = {
    "early_stopping": {"monitor": "val_loss", "patience": 1, "min_delta": 0.001},
    "reduce_on_plateau": {"monitor": "val_loss", "patience": 0, "factor": 0.5},
    "restore_best_weights": "val_accuracy",
    "augmentation": "affine",
    "metrics": ("accuracy", "top_2_accuracy", "crossentropy"),
}


OF_ACCURATE = {
    name: value
    for name, value in PRESETS["accurate"].training.items()
    if name not in {"epochs", "batch_size"}
}


@pytest.fixture(scope="module")
def straight():
    """A model that was fitted with the default settings, and its fit; do not modify them."""
    return run_through(config_of(), small_split())


@pytest.fixture(scope="module")
def _stopped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*ONE_STEP_PER_CALL)
        with pytest.raises(Interrupted):
            run_through(config_of(), small_split(), folder, stop=StopAfter(10))
    return folder


@pytest.fixture
def stopped(_stopped: Path, tmp_path: Path) -> Path:
    """A folder with the checkpoints of the same fit, stopped on its way."""
    return shutil.copytree(_stopped, tmp_path / "checkpoints")


def two_columns(input_shape, classes):
    """Build a network like `accurate`, which takes long to trace, with fewer and smaller layers."""
    layers = keras.layers

    def column(share, prefix):
        features = layers.Conv2D(4, 3, name=f"{prefix}conv")(share)
        features = layers.BatchNormalization(name=f"{prefix}norm")(features)
        return layers.Flatten(name=f"{prefix}flat")(features)

    pixels = keras.Input(input_shape, dtype="uint8", name="pixels")
    rescaled = layers.Rescaling(1 / 255, name="rescale")(pixels)
    features = layers.Dropout(0.3, seed=5)(multi_column(rescaled, [column, column]))
    return keras.Model(pixels, layers.Dense(classes, dtype="float32", name="logits")(features))


@pytest.mark.parametrize(
    ("model", "training", "stops"),
    [
        ("lab", {}, (1, 3, 6)),
        ("lab", EVERYTHING, (1, 3, 6)),
        ("lab", {"label_encoding": "one-hot", "optimizer": "sgd", "validation_freq": 2}, (3,)),
        ("regularized", {"lr_schedule": "one-cycle"}, (3,)),
        ("convnet", {"augmentation": "shift"}, (3,)),
        ("fast", {"lr_schedule": "cosine", "optimizer": "adamw"}, (3,)),
        (f"{__name__}:two_columns", OF_ACCURATE, (3,)),
        ("lab", {"optimizer": "rmsprop"}, (3,)),
        ("tiny", {"dtype_policy": "mixed_bfloat16"}, (3,)),
        ("lab", {"dtype_policy": "mixed_float16", "ema_decay": 0.9}, (3,)),
        ("lab", EVERYTHING | {"ema_decay": 0.9}, (3,)),
    ],
)
def test_stopped_fit_resumes_exactly(tmp_path: Path, monkeypatch, model, training, stops):
    split, config = small_split(), config_of(model, **training)
    straight, expected = run_through(config, split)
    monkeypatch.setattr(*ONE_STEP_PER_CALL)
    for looks in stops:
        with pytest.raises(Interrupted):
            run_through(config, split, tmp_path, stop=StopAfter(looks))
    resumed, found = run_through(config, split, tmp_path)
    assert any(remark.startswith("resumed at epoch") for remark in found.remarks)
    assert same(straight, resumed)
    assert found.history.history == expected.history.history
    assert found.weights_epoch == expected.weights_epoch
    rows = [row for row in found.table.to_pylist() if row["metric"] != "epoch_seconds"]
    expected_rows = [row for row in expected.table.to_pylist() if row["metric"] != "epoch_seconds"]
    assert [without_time(row) for row in rows] == [without_time(row) for row in expected_rows]


def test_resumed_fit_keeps_validation(tmp_path, monkeypatch):
    split, own, config = small_split(), small_split(count=30), config_of(**EVERYTHING)
    straight, expected = run_through(config, split, validation=own)
    monkeypatch.setattr(*ONE_STEP_PER_CALL)
    for looks in (2, 5):
        with pytest.raises(Interrupted):
            run_through(config, split, tmp_path, own, stop=StopAfter(looks))
    resumed, found = run_through(config, split, tmp_path, own)
    assert same(straight, resumed)
    assert found.history.history == expected.history.history
    drawn, others = run_through(config, split)
    assert others.history.history["val_loss"] != found.history.history["val_loss"]
    assert not same(straight, drawn)  # that one was trained on fewer images


def without_time(row):
    return {name: value for name, value in row.items() if name != "logged_at"}


def test_seed_decides_weights(straight):
    split = small_split()
    one, first = straight
    again, second = run_through(config_of(), split)
    other, third = run_through(config_of(seed=4), split)
    assert same(one, again)
    assert first.history.history == second.history.history
    assert not same(one, other)
    assert first.history.history != third.history.history


def test_steps_per_call_change_nothing(monkeypatch):
    split, config = small_split(), config_of(augmentation="affine")
    monkeypatch.setattr(*ONE_STEP_PER_CALL)
    single, _ = run_through(config, split)
    monkeypatch.setattr(
        "nnbuild.training.loop.StepsPerCall.__init__", lambda self: setattr(self, "steps", 1000)
    )
    many, _ = run_through(config, split)
    assert same(single, many)


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.0), (24, 1 - 10 / 24), (100_000, 0.998)])
def test_ema_momentum_of_short_fits(steps, momentum):
    model = models.build(config_of(), (8, 8, 1), CLASSES)
    models.compile_model(model, config_of(ema_decay=0.998).training, steps=steps)
    assert model.optimizer.ema_momentum == pytest.approx(momentum)


def test_unshuffled_epoch_equals_keras(monkeypatch):
    """`model.fit` on the same batches gives the same metrics and weights but for rounding."""
    split, config = small_split(), config_of(epochs=1)
    monkeypatch.setattr("nnbuild.training.trainer.epoch_order", lambda rows, *_: rows)
    ours, fitted = run_through(config, split)
    theirs = compiled(config, split)
    rows, held_out = split_rows(len(split), config.training.validation_fraction, config.seed)
    history = theirs.fit(
        split.images[rows],
        split.labels[rows].astype(np.int32),
        batch_size=16,
        epochs=1,
        shuffle=False,
        verbose=0,
        validation_data=(split.images[held_out], split.labels[held_out].astype(np.int32)),
    )
    for name, values in history.history.items():
        assert fitted.history.history[name] == pytest.approx(values, rel=1e-5)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_fit_learns():
    _model, fitted = run_through(config_of(epochs=15, learning_rate=0.01), small_split())
    assert fitted.history.history["val_accuracy"][-1] == 1.0


def test_nan_loss_stops_fit():
    with pytest.raises(DivergedError, match=r"loss became (nan|inf) in epoch \d, between steps"):
        run_through(
            config_of("regularized", l2=10, optimizer="sgd", learning_rate=100, epochs=50),
            small_split(),
        )


def test_early_stopping_restores_best():
    config = config_of(
        epochs=60,
        learning_rate=0.05,
        early_stopping={"monitor": "val_loss", "patience": 2},
        restore_best_weights="val_loss",
    )
    split = small_split()
    _model, fitted = run_through(config, split)
    losses = fitted.history.history["val_loss"]
    assert len(losses) < 60
    assert fitted.weights_epoch == int(np.argmin(losses)) + 1


def evaluated(model, split, config):
    """Return the loss of a model on the validation images."""
    rows = split_rows(len(split), config.training.validation_fraction, config.seed)[1]
    labels = split.labels[rows].astype(np.int32)
    return model.evaluate(split.images[rows], labels, verbose=0, return_dict=True)["loss"]


AVERAGED = {"epochs": 6, "learning_rate": 0.05, "ema_decay": 0.8}


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("best", [None, "val_loss", "loss"])
def test_ema_weights_are_validated(precision, best):
    split, config = (
        small_split(),
        config_of(dtype_policy=precision, restore_best_weights=best, **AVERAGED),
    )
    model, fitted = run_through(config, split)
    losses = fitted.history.history["val_loss"]
    kept = losses[fitted.weights_epoch - 1]
    assert evaluated(model, split, config) == pytest.approx(kept, rel=1e-5)
    if best == "val_loss":
        assert fitted.weights_epoch == int(np.argmin(losses)) + 1


def test_ema_changes_no_step():
    split = small_split()
    _, plain = run_through(
        config_of(**AVERAGED | {"ema_decay": None, "restore_best_weights": "val_loss"}), split
    )
    _, averaged = run_through(config_of(**AVERAGED, restore_best_weights="val_loss"), split)
    assert plain.history.history["loss"] == averaged.history.history["loss"]
    assert plain.history.history["val_loss"] != averaged.history.history["val_loss"]


def test_callbacks_see_ema_weights():
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, *_):
            seen.append(self.model.get_weights())

    model, _ = run_through(config_of(**AVERAGED), small_split(), callbacks=[Look()])
    assert all(np.array_equal(*pair) for pair in zip(seen[-1], model.get_weights(), strict=True))


def test_callbacks_are_called():
    seen = []

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, logs["loss"]))

    _, fitted = run_through(config_of(), small_split(), callbacks=[Count()])
    assert seen == list(enumerate(fitted.history.history["loss"]))


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_damaged_checkpoint_falls_back(stopped: Path, straight):
    assert len(list(stopped.glob("*.json"))) == 2
    damage(max(stopped.glob("*.npz")))
    resumed, fitted = run_through(config_of(), small_split(), stopped)
    assert any("damaged" in remark for remark in fitted.remarks)
    assert same(straight[0], resumed)


def test_all_checkpoints_damaged_restarts(stopped: Path, straight):
    for path in stopped.glob("*.json"):
        damage(path)
    resumed, _ = run_through(config_of(), small_split(), stopped)
    assert same(straight[0], resumed)


@pytest.mark.parametrize("what", ["config", "dataset", "code"])
def test_foreign_checkpoint_raises(stopped: Path, what):
    split, config = small_split(), config_of()
    identity = {"config": config.digest(), "dataset": "d", "code": "c"} | {what: "another"}
    with pytest.raises(StoreError, match=f"another {what}"):
        fit(
            compiled(config, split),
            split,
            config,
            CLASSES,
            FitContext(checkpoints=Checkpoints(stopped, identity)),
        )


def test_other_threads_add_remark(tmp_path: Path, monkeypatch):
    split, config = small_split(), config_of()
    monkeypatch.setattr(*ONE_STEP_PER_CALL)
    identity = {"config": config.digest(), "dataset": "d", "code": "c", "threads": 1}
    around = FitContext(checkpoints=Checkpoints(tmp_path, identity), stop=StopAfter(5))
    with pytest.raises(Interrupted):
        fit(compiled(config, split), split, config, CLASSES, around)
    later = replace(
        around, checkpoints=Checkpoints(tmp_path, identity | {"threads": 2}), stop=lambda: None
    )
    fitted = fit(compiled(config, split), split, config, CLASSES, later)
    assert any("threads was 1 and is 2" in remark for remark in fitted.remarks)


@pytest.mark.parametrize("model", ["lab", "convnet"])
def test_draws_of_threads_change_nothing(model):
    """Threads of Prefect draw from Python's global generator while a model is built."""
    expected = models.build(config_of(model), (8, 8, 1), CLASSES).get_weights()
    done = threading.Event()

    def draw():
        while not done.is_set():
            random.random()  # noqa: S311

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        found = models.build(config_of(model), (8, 8, 1), CLASSES).get_weights()
    finally:
        done.set()
        thread.join()
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_fit_leaves_no_graph(precision):
    split, config = small_split(), config_of(dtype_policy=precision, epochs=1)
    kept = []
    for _ in range(3):
        run_through(config, split)
        gc.collect()
        kept.append(sum(isinstance(each, tf.Graph) for each in gc.get_objects()))
    assert kept[1] == kept[2]
