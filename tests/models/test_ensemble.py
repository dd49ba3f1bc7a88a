"""Ensembles: members are trained one after another, and their log-probabilities are averaged."""

import numpy as np
import pytest
from run_values import values
from small_data import run_config

from nnbuild import engines, logits
from nnbuild.errors import ContractError, Interrupted
from nnbuild.models import load_model
from nnbuild.models.ensemble import combine, member_seed
from nnbuild.pipeline.run import open_run, retrain
from nnbuild.runtime.tensorflow import keras
from nnbuild.store import Store

SHAPE, CLASSES, MEMBERS = (8, 8, 1), 3, 2


def config_of(folder, members=MEMBERS, **training):
    given = {"epochs": 2, "threads": 2, "batch_size": 16, "learning_rate": 0.01, **training}
    return run_config(folder, model={"name": "convnet", "ensemble_size": members}, training=given)


def model_of(store, run_id):
    digest = store.manifest(run_id).files[f"runs/{run_id}/model.keras"].sha256
    return load_model(store.root / "runs" / run_id / "model.keras", digest)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_folder):
    """Return a store with an ensemble and a single run with the same seed."""
    store = Store(tmp_path_factory.mktemp("ensemble") / "store")
    return store, *(
        retrain(config_of(small_folder, members), store.root).run_id for members in (MEMBERS, 1)
    )


def pixels(rows=20):
    return np.random.default_rng(0).integers(0, 256, (rows, *SHAPE), np.uint8)


def test_combine_averages_log_softmax(finished):
    store, run_id, _ = finished
    model = model_of(store, run_id)
    logits.check_model(model, CLASSES, SHAPE)
    members = [model.get_layer(f"member_{number}") for number in range(MEMBERS)]
    each = [logits.log_softmax(np.asarray(member(pixels()))) for member in members]
    found = np.asarray(model(pixels()))
    assert found.dtype == np.float32
    assert np.abs(found - np.mean(each, axis=0)).max() < 1e-5
    assert not np.allclose(each[0], each[1])
    pooled = np.exp(np.mean(each, axis=0))
    assert np.abs(logits.softmax(found) - pooled / pooled.sum(axis=1, keepdims=True)).max() < 1e-6


def test_first_member_equals_single_run(finished):
    store, run_id, single = finished
    first = model_of(store, run_id).get_layer("member_0")
    for one, other in zip(first.get_weights(), model_of(store, single).get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_ensemble_is_one_model(finished):
    store, run_id, single = finished
    manifest = store.manifest(run_id)
    assert manifest.steps.export_model.same_predictions
    engine = engines.OnnxEngine(store.root / "runs" / run_id / "model.onnx", threads=1)
    assert (
        np.abs(engine.logits(pixels()) - np.asarray(model_of(store, run_id)(pixels()))).max() < 1e-4
    )
    parameters = [store.manifest(each).steps.build_model.parameters for each in (run_id, single)]
    assert parameters[0] == MEMBERS * parameters[1]
    assert manifest.row.epochs == manifest.steps.fit_model.weights_epoch == 2 * MEMBERS
    assert manifest.steps.fit_model.member_epochs == (2,) * MEMBERS
    history = store.read_table("history", run_id).to_pylist()
    epochs = [row["epoch"] for row in history if row["metric"] == "loss"]
    assert epochs == list(range(1, 2 * MEMBERS + 1))
    assert (
        store.read_table("predictions", run_id).num_rows
        == store.read_table("predictions", single).num_rows
    )


def test_report_separates_the_members(finished):
    store, run_id, single = finished
    page, of_single = (
        (store.root / "runs" / each / "report.html").read_text() for each in (run_id, single)
    )
    assert "An ensemble of 2 networks of 2 epochs each, trained on" in page
    assert "<dd><bdi>of 2 networks of 2 epochs each</bdi></dd>" in page
    assert "restored epoch" not in page
    assert "Trained for 2 epochs on" in of_single
    assert "restored epoch (2)" in of_single


class StopsAt:
    """Progress callback that stops like a signal after an epoch."""

    def __init__(self, epoch):
        self.at = epoch

    def step(self, *_): ...

    def epoch(self, epoch, epochs, *_):
        assert epochs == 2 * MEMBERS
        if epoch == self.at:
            raise Interrupted("stopped by signal 15", 15)


def test_stopped_ensemble_ends_the_same(finished, small_folder, tmp_path):
    store, run_id, _ = finished
    run = open_run(config_of(small_folder), tmp_path)
    for epoch in (1, 3, 4):
        with pytest.raises(Interrupted) as stopped:
            retrain(store=tmp_path, resume=run.run_id, progress=StopsAt(epoch))
        member = 1 + (epoch - 1) // 2
        assert f"member {member} of {MEMBERS}" in stopped.value.__notes__[0]
    again = retrain(store=tmp_path, resume=run.run_id).run_id
    assert values(Store(tmp_path), again) == values(store, run_id)


def test_ensemble_of_user_model(tmp_path, small_folder):
    config = config_of(
        small_folder,
        2,
        epochs=1,
        dtype_policy="mixed_bfloat16",
        metrics=("accuracy", "crossentropy"),
    )
    own = config.model_copy(
        update={"model": config.model.model_copy(update={"name": f"{__name__}:own"})}
    )
    run_id = retrain(own, tmp_path).run_id
    model = model_of(Store(tmp_path), run_id)
    assert {
        each.compute_dtype
        for number in (0, 1)
        for each in model.get_layer(f"member_{number}").layers
    } == {"float32"}


def own(input_shape, classes):
    inputs = keras.Input(input_shape)
    features = keras.layers.Dropout(0.2)(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes, dtype="float32")(features))


def test_softmax_members_raise(small_folder):
    def softmax_at_the_end():
        inputs = keras.Input(SHAPE, dtype="uint8")
        flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        return keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(flat))

    model = combine(
        [softmax_at_the_end() for _ in range(2)], config_of(small_folder).training, SHAPE
    )
    with pytest.raises(ContractError, match="ends in Softmax"):
        logits.check_model(model, CLASSES, SHAPE)


def test_member_seeds_differ():
    assert [member_seed(seed, 0) for seed in (0, 7, 2**31 - 1)] == [0, 7, 2**31 - 1]
    drawn = {member_seed(seed, number) for seed in range(50) for number in range(1, 20)}
    assert len(drawn) == 50 * 19
    assert all(0 <= each < 2**31 for each in drawn)
