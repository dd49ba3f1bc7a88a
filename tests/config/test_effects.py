"""Test that settings without an effect are refused, and others accepted."""

import pytest

from nnbuild.config.schema import RunConfig, resolve
from nnbuild.errors import ConfigError


def resolved(model="lab", l2=None, dropout=None, **training):
    given = {"model": {"name": model, "l2": l2, "dropout": dropout}, "training": training}
    return resolve(RunConfig.model_validate(given))


STOPPING = {"early_stopping": {"monitor": "val_loss", "patience": 1}}
PLATEAU = {"reduce_on_plateau": {"monitor": "val_accuracy"}}
BEST = {"restore_best_weights": "val_loss"}


@pytest.mark.parametrize(
    "watching", [STOPPING, PLATEAU, BEST, STOPPING | {"restore_best_weights": "loss"}]
)
def test_monitor_never_measured_is_refused(watching):
    with pytest.raises(
        ConfigError, match=r"is never measured: validation_freq is 5, the run has 4"
    ):
        resolved(epochs=4, validation_freq=5, **watching)
    resolved(epochs=5, validation_freq=5, **watching)


def test_monitor_of_training_is_accepted():
    resolved(epochs=4, validation_freq=5, restore_best_weights="loss")
    resolved(epochs=4, validation_freq=5)


def test_plateau_without_effect_is_refused():
    plateau = {"monitor": "loss", "min_learning_rate": 0.01}
    with pytest.raises(ConfigError, match=r"can never lower the learning rate 0\.01"):
        resolved(learning_rate=0.01, reduce_on_plateau=plateau)
    with pytest.raises(ConfigError, match=r"can never lower the learning rate 0\.001"):
        resolved(reduce_on_plateau=plateau)  # the network's own rate
    resolved(learning_rate=0.02, reduce_on_plateau=plateau)


@pytest.mark.parametrize(
    ("model", "field"),
    [("convnet", "l2"), ("tiny", "l2"), ("mine:build", "l2"), ("mine:build", "dropout")],
)
def test_setting_without_effect_is_refused(model, field):
    with pytest.raises(ConfigError, match=rf"model\.{field} 0\.1 has no effect on '{model}'"):
        resolved(model, **{field: 0.1})
    resolved(model, **{field: 0.0})


@pytest.mark.parametrize("model", ["lab", "regularized"])
def test_setting_with_effect_is_accepted(model):
    found = resolved(model, l2=0.1, dropout=0.2).model
    assert (found.l2, found.dropout) == (0.1, 0.2)


def test_monitor_of_custom_metric_accepted():
    resolved("mine:build", restore_best_weights="val_penalty")
    with pytest.raises(ConfigError, match="will not be in the history"):
        resolved("lab", restore_best_weights="val_penalty")
