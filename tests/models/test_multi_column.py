"""Multi-column networks.

In training, each image has the features of the one column that learned from it, in the order of the
batch. When scoring, the features of all columns and views are averaged.
"""

import numpy as np
import pytest

from nnbuild import models
from nnbuild.config.presets import PRESETS
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.models.multi_column import BatchShard, multi_column
from nnbuild.runtime.tensorflow import keras, tf

layers = keras.layers
ROWS = range(1, 12)


def network(column, count):
    images = keras.Input((2, 3, 1))
    return keras.Model(images, multi_column(images, [column] * count))


def batch_of(rows):
    return np.random.default_rng(rows).random((rows, 2, 3, 1), np.float32)


def flat(batch):
    return batch.reshape(len(batch), -1)


def offset(share, prefix):
    """Build a column that adds 100 times its number."""
    return layers.Rescaling(1.0, offset=100.0 * int(prefix.split("_")[1]))(layers.Flatten()(share))


def dense(share, prefix):
    return layers.Dense(2, name=f"{prefix}dense")(layers.Flatten()(share))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_training_rows_keep_their_order(count):
    model = network(offset, count)
    for rows in ROWS:
        found = model(batch_of(rows), training=True).numpy()
        assert found.shape == (rows, 6)
        number = np.floor(found[:, 0] / 100)
        np.testing.assert_allclose(found - 100 * number[:, None], flat(batch_of(rows)), atol=1e-4)
        assert set(number) <= set(range(1, count + 1))
        assert np.unique(number, return_counts=True)[1].max() == -(-rows // count)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_scoring_averages_all_views(count):
    framed = np.pad(batch_of(7), ((0, 0), (2, 2), (2, 2), (0, 0)))
    moved = [
        np.roll(framed, by, axis=(1, 2))[:, 2:-2, 2:-2] for by in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    found = network(offset, count)(batch_of(7), training=False).numpy()
    np.testing.assert_allclose(
        found, flat(np.mean(moved, axis=0)) + 100 * (count + 1) / 2, rtol=1e-6
    )


def test_column_learns_from_its_shard():
    model = network(dense, 3)

    def gradient(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(batch, training=True) ** 2)
        return [
            np.abs(each.numpy()).sum()
            for each in tape.gradient(loss, model.trainable_variables[::2])
        ]

    before, batch = gradient(batch_of(9)), batch_of(9)
    batch[4] += 1  # one of the rows 3 to 5 of the second column
    after = gradient(batch)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


@pytest.mark.parametrize("rows", [1, 2])
def test_small_batch_stays_finite(rows):
    model = network(lambda share, prefix: layers.BatchNormalization()(dense(share, prefix)), 3)
    assert np.isfinite(model(batch_of(rows), training=True)).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_saved_columns_are_the_same(tmp_path):
    model = network(dense, 3)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for training in (True, False):
        np.testing.assert_array_equal(
            model(batch_of(8), training=training), again(batch_of(8), training=training)
        )


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_network_has_preset_columns(name):
    model = models.build(
        resolve(RunConfig.model_validate({"model": {"name": name}})), (28, 28, 1), 10
    )
    assert sum(isinstance(layer, BatchShard) for layer in model.layers) == (
        PRESETS[name].columns if PRESETS[name].columns > 1 else 0
    )


def test_columns_take_small_colour_images():
    config = resolve(RunConfig.model_validate({"model": {"name": "accurate"}}))
    model = models.build(config, (9, 7, 3), 5)
    assert np.isfinite(model(np.zeros((2, 9, 7, 3), np.uint8))).all()
    assert model.output_shape == (None, 5)


def test_columns_get_a_thread_each():
    def threads(name, processors, **training):
        given = RunConfig.model_validate({"model": {"name": name}, "training": training})
        return resolve(given, processors=processors).training.threads

    assert [threads("accurate", processors) for processors in (1, 2, 3, 8)] == [1, 1, 3, 8]
    assert [threads("convnet", processors) for processors in (1, 2, 3, 8)] == [1, 2, 3, 8]
    assert threads("accurate", 2, threads=2) == 2
