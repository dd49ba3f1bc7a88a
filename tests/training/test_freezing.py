"""A frozen backbone: only the head learns at first, then all of it at a lower rate."""

import keras
import numpy as np
import pytest
from keras import layers
from small_fit import CLASSES, config_of, same, small_split

from nnbuild import models
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.errors import ConfigError, Interrupted
from nnbuild.models import seeded
from nnbuild.training import Checkpoints, FitContext, fit

SHAPE = (8, 8, 1)


@seeded(0)
def network():
    images = keras.Input(SHAPE)
    features = layers.Conv2D(4, 3, name="conv")(images)
    features = layers.BatchNormalization(name="norm")(features)
    frozen = layers.Conv2D(4, 1, name="always_frozen", trainable=False)
    backbone = keras.Model(images, layers.Flatten()(frozen(features)), name="backbone")
    pixels = keras.Input(SHAPE, dtype="uint8")
    features = backbone(layers.Rescaling(1 / 255)(pixels))
    return keras.Model(pixels, layers.Dense(CLASSES, name="head")(features))


def settings(**training):
    return config_of("user:build", **{"lr_schedule": "constant"} | training)


def fitted(config, folder=None, stop_after=None):
    """Fit a network, with a signal to stop in the epoch after a number of epochs."""
    model, split, done = network(), small_split(SHAPE), []
    models.compile_model(model, config.training, steps=7 * int(config.training.epochs))
    checkpoints = Checkpoints(folder, {"config": "c"}) if folder else None
    context = FitContext(
        checkpoints=checkpoints,
        on_history=done.append,
        stop=lambda: 15 if len(done) == stop_after else None,
    )
    return model, fit(model, split, config, CLASSES, context)


FROZEN = {"epochs": 2, "freeze_epochs": 2, "fine_tuning_rate": 1e-4, "learning_rate": 1e-2}


def test_frozen_backbone_is_unchanged():
    model, _ = fitted(settings(**FROZEN))
    before = network()
    inside = [each.get_layer("backbone").get_weights() for each in (model, before)]
    for one, other in zip(*inside, strict=True):
        np.testing.assert_array_equal(one, other)
    head = [each.get_layer("head").get_weights()[0] for each in (model, before)]
    assert (head[0] != head[1]).any()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_backbone_learns_after_the_frozen_epochs(optimizer):
    config = settings(**FROZEN | {"epochs": 3, "optimizer": optimizer})
    model, result = fitted(config)
    inside, before = model.get_layer("backbone"), network().get_layer("backbone")
    for name, changed in (("conv", True), ("always_frozen", False), ("norm", True)):
        one, other = (each.get_layer(name).get_weights()[0] for each in (inside, before))
        assert (one != other).any() == changed
    assert [layer.trainable for layer in inside.layers if layer.weights] == [True, True, False]
    assert result.history.history["learning_rate"][-1] == pytest.approx(1e-4)
    assert result.history.history["learning_rate"][0] == pytest.approx(1e-2)


@pytest.fixture(scope="module")
def whole():
    """The settings of a fit that was never stopped, and its model."""
    config = settings(**FROZEN | {"epochs": 4, "ema_decay": 0.5})
    return config, fitted(config)[0]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_stopped_frozen_fit_resumes_exactly(tmp_path, whole, epochs):
    config, expected = whole
    with pytest.raises(Interrupted):
        fitted(config, tmp_path, epochs)
    resumed, _ = fitted(config, tmp_path)
    assert same(expected, resumed)


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_lower_rate_survives_saving(tmp_path, schedule):
    config = settings(**FROZEN | {"epochs": 4, "lr_schedule": schedule})
    plain = settings(epochs=4, lr_schedule=schedule, learning_rate=1e-2)
    path = tmp_path / "a.keras"
    model, reference = network(), network()
    models.compile_model(model, config.training, steps=40)
    models.compile_model(reference, plain.training, steps=40)
    loaded = models.load_model(path, models.save_model(model, path))
    for step in (0, 19, 20, 39):
        for each in (loaded, reference):
            each.optimizer.iterations.assign(step)
        factor = 1 if step < 20 else 0.01
        expected = float(reference.optimizer.learning_rate) * factor
        assert float(loaded.optimizer.learning_rate) == pytest.approx(expected, rel=1e-5)


def test_network_without_a_backbone_is_refused():
    pixels = keras.Input(SHAPE, dtype="uint8")
    model = keras.Model(pixels, layers.Dense(3)(layers.Flatten()(pixels)))
    with pytest.raises(ConfigError, match=r"call the backbone as a layer"):
        models.compile_model(model, settings(**FROZEN).training, steps=4)


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ("convnet", {"freeze_epochs": 2}, "which has no backbone"),
        ("a:b", {"fine_tuning_rate": 0.1}, "has no effect without training.freeze_epochs"),
        ("a:b", {"freeze_epochs": 1, "reduce_on_plateau": {}}, "both set the learning rate"),
    ],
)
def test_setting_without_effect_is_refused(model, training, message):
    config = RunConfig.model_validate({"model": {"name": model}, "training": training})
    with pytest.raises(ConfigError, match=message):
        resolve(config)


def test_backbone_with_the_head_in_it_is_refused():
    pixels = keras.Input(SHAPE, dtype="uint8")
    whole = keras.Model(pixels, network()(pixels))
    with pytest.raises(ConfigError, match=r"leaves nothing to train.* outside of the backbone"):
        models.compile_model(whole, settings(**FROZEN).training, steps=4)
    assert whole.trainable_variables


def test_fine_tuning_rate_is_a_tenth_by_default():
    training = {"freeze_epochs": 1, "learning_rate": 0.02}
    config = RunConfig.model_validate({"model": {"name": "a:b"}, "training": training})
    assert resolve(config).training.fine_tuning_rate == pytest.approx(0.002)
