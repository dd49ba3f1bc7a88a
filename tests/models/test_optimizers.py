"""Muon orthogonalizes the steps of hidden kernels, and is Adam for all other weights."""

import numpy as np
import pytest

from nnbuild.models import seeded
from nnbuild.models.optimizers import Muon, orthogonal
from nnbuild.runtime.tensorflow import keras, tf

layers = keras.layers
RATE = 0.01


@seeded(0)
def network(*hidden):
    made = [kind(*size) for kind, size in hidden]
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(6, 3), *made, layers.Flatten(), layers.Dense(3)]
    )


def moved(model, optimizer, steps=1):
    """Return how far each weight moves in some steps on random images."""
    draw = np.random.default_rng(0)
    before = [weight.numpy() for weight in model.trainable_variables]
    model.compile(
        optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    for _ in range(steps):
        model.train_on_batch(draw.random((16, 8, 8, 1), np.float32), draw.integers(0, 3, 16))
    return [
        weight.numpy() - old for weight, old in zip(model.trainable_variables, before, strict=True)
    ]


def root_mean_square(step):
    return float(np.sqrt((step**2).mean()))


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (12, 12), (2, 90)])
def test_orthogonal_singular_values(shape):
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    middle = left.T @ orthogonal(tf.constant(matrix)).numpy() @ right.T
    values = np.diag(middle)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert np.abs(middle - np.diag(values)).max() < 1e-3


def test_orthogonal_ignores_scale():
    matrix = np.random.default_rng(2).normal(size=(9, 5)).astype(np.float32)
    np.testing.assert_allclose(orthogonal(1e3 * matrix), orthogonal(1e-3 * matrix), atol=1e-3)
    assert not np.any(orthogonal(tf.zeros((9, 5))))


def test_muon_without_kernels_is_adam():
    adam, muon = moved(network(), keras.optimizers.Adam(RATE), 5), moved(network(), Muon(RATE), 5)
    for ours, expected in zip(muon, adam, strict=True):
        np.testing.assert_array_equal(ours, expected)


# The network creates its layers after it has set the seed, from which they draw.
@pytest.mark.parametrize(
    ("kind", "size"),
    [(layers.Conv2D, (10, 3)), (layers.Dense, (20,)), (layers.Conv2D, (4, 1))],
)
def test_muon_step_is_orthogonal(kind, size):
    first, bias, hidden, *_, last, _ = moved(network((kind, size)), Muon(RATE))
    assert root_mean_square(hidden) == pytest.approx(RATE / 5, rel=0.4)
    values = np.linalg.svd(hidden.reshape(-1, hidden.shape[-1]), compute_uv=False)
    assert values.min() > values.max() / 2
    for each in (first, bias, last):  # Adam's first step is the learning rate, or 0
        assert np.isclose(np.abs(each), RATE, rtol=0.01).mean() > 0.9


def test_muon_leaves_depthwise_to_adam():
    adam = moved(network((layers.DepthwiseConv2D, (3,))), keras.optimizers.Adam(RATE), 3)
    muon = moved(network((layers.DepthwiseConv2D, (3,))), Muon(RATE), 3)
    for ours, expected in zip(muon, adam, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_muon_config_round_trip():
    again = keras.optimizers.deserialize(
        keras.optimizers.serialize(Muon(RATE, momentum=0.9, beta_2=0.99))
    )
    assert isinstance(again, Muon)
    assert (again.momentum, again.beta_2) == (0.9, 0.99)
    assert float(again.learning_rate) == pytest.approx(RATE)
