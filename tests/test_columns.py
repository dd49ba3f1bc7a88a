"""Columns: in training a row comes back at its place from the one column that had it; at scoring all are averaged."""

import numpy as np
import pytest

from nnbuild.backend import keras, tf
from nnbuild.models.columns import columns

layers = keras.layers
ROWS = range(1, 12)


def network(column, count):
    batch = keras.Input((3,))
    return keras.Model(batch, columns(batch, column, count))


def batch_of(rows):
    return np.random.default_rng(rows).random((rows, 3), np.float32)


def offset(share, prefix):
    """Tells which column it was: adds 100 times its number."""
    return layers.Rescaling(1.0, offset=100.0 * int(prefix.split("_")[1]))(share)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_row_comes_back_at_its_place_from_one_column(count):
    model = network(offset, count)
    for rows in ROWS:
        found = model(batch_of(rows), training=True).numpy()
        assert found.shape == (rows, 3)
        number = np.floor(found[:, 0] / 100)
        np.testing.assert_allclose(found - 100 * number[:, None], batch_of(rows), atol=1e-4)
        assert set(number) <= set(range(1, count + 1))
        assert np.unique(number, return_counts=True)[1].max() == -(-rows // count)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_at_scoring_it_is_the_mean_of_all_columns(count):
    found = network(offset, count)(batch_of(7), training=False).numpy()
    np.testing.assert_allclose(found, batch_of(7) + 100 * (count + 1) / 2, rtol=1e-6)


def test_a_column_learns_from_nothing_but_its_share():
    model = network(lambda share, prefix: layers.Dense(2, name=f"{prefix}dense")(share), 3)

    def gradient(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(batch, training=True) ** 2)
        return [np.abs(each.numpy()).sum() for each in tape.gradient(loss, model.trainable_variables[::2])]

    before, batch = gradient(batch_of(9)), batch_of(9)
    batch[4] += 1  # of the second column's rows, 3 to 5
    after = gradient(batch)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


@pytest.mark.parametrize("rows", [1, 2])
def test_batch_norm_stays_finite_where_there_are_fewer_images_than_columns(rows):
    model = network(lambda share, _: layers.BatchNormalization()(layers.Dense(2)(share)), 3)
    assert np.isfinite(model(batch_of(rows), training=True)).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_it_is_the_same_when_it_was_saved_and_read(tmp_path):
    model = network(lambda share, _: layers.Dense(2)(share), 3)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for training in (True, False):
        np.testing.assert_array_equal(model(batch_of(8), training=training), again(batch_of(8), training=training))
