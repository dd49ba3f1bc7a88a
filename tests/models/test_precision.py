"""Mixed precision: layers compute in half precision in training, and saved models in float32."""

import numpy as np
import pytest
from small_data import run_config

from nnbuild import logits, models
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.engines import KerasEngine
from nnbuild.errors import ContractError
from nnbuild.models.architectures import NETWORKS
from nnbuild.pipeline.run import retrain
from nnbuild.runtime.tensorflow import keras
from nnbuild.store import Store

SHAPE = (12, 12, 1)
HALF = ["mixed_bfloat16", "mixed_float16"]


def config_of(name, precision):
    settings = {"model": {"name": name}, "training": {"dtype_policy": precision}}
    return resolve(RunConfig.model_validate(settings))


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", NETWORKS)
def test_head_computes_in_float32(name, precision):
    model = models.build(config_of(name, precision), SHAPE, 3)
    logits.check_model(model, 3, SHAPE)
    assert model.layers[-1].compute_dtype == model.outputs[0].dtype == "float32"
    assert {each.dtype for each in model.trainable_variables} == {"float32"}
    assert {each.compute_dtype for each in model.layers[2:-1]} == {precision.removeprefix("mixed_")}
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("precision", HALF)
def test_build_float32_keeps_weights(precision):
    config = config_of("convnet", precision)
    model = models.build(config, SHAPE, 3)
    models.compile_model(model, config.training, steps=1)
    kept = models.build_float32(model, config, SHAPE, 3)
    assert {each.compute_dtype for each in kept.layers[1:]} == {"float32"}
    assert all(
        np.array_equal(one, other)
        for one, other in zip(model.get_weights(), kept.get_weights(), strict=True)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), np.uint8)
    half, single = (KerasEngine(each, 20).logits(pixels) for each in (model, kept))
    assert 0 < np.abs(half - single).max() < 0.05 * np.abs(single).max()
    assert models.build_float32(kept, config_of("convnet", "float32"), SHAPE, 3) is kept


@pytest.mark.parametrize("precision", HALF)
def test_run_half_precision_exports(tmp_path, small_folder, precision):
    training = {"epochs": 12, "dtype_policy": precision, "learning_rate": 0.01}
    run_id = retrain(run_config(small_folder, training=training), tmp_path).run_id
    manifest = Store(tmp_path).manifest(run_id)
    assert manifest.steps.export_model.same_predictions
    assert manifest.row.test_accuracy > 0.8
    assert manifest.config["training"]["dtype_policy"] == precision


def test_loss_scale_changes_no_step():
    """The scale is a power of two, so that scaling and unscaling are exact in float32."""
    steps = []
    for precision in ("float32", "mixed_float16"):
        inputs = keras.Input((4,))
        head = keras.layers.Dense(2, kernel_initializer="ones")
        model = keras.Model(inputs, head(inputs))
        training = config_of("lab", precision).training.model_copy(update={"optimizer": "sgd"})
        models.compile_model(model, training, steps=1)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (
            precision == "mixed_float16"
        )
        model.train_on_batch(np.arange(12, dtype=np.float32).reshape(3, 4), np.array([0, 1, 0]))
        steps.append(head.kernel.numpy())
    assert np.array_equal(*steps)
    assert (steps[0] != 1).any()


def half_head(input_shape, classes):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(inputs)))


def test_half_precision_head_raises():
    config = config_of(f"{__name__}:half_head", "mixed_bfloat16")
    with pytest.raises(
        ContractError, match=r'logits of bfloat16, expected float32.*dtype="float32"'
    ):
        logits.check_model(models.build(config, SHAPE, 3), 3, SHAPE)
