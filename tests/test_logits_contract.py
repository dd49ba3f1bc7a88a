"""What may call itself logits: read from the graph of real Keras models, however they are written."""

import numpy as np
import pytest

from nnbuild.backend import keras, tf
from nnbuild.errors import ContractError
from nnbuild.logits import check_logits, check_model, refuse_probabilities, softmax

SHAPE, CLASSES = (6, 6, 1), 3
layers = keras.layers


def functional(head):
    """A model whose features go through `head`."""
    pixels = keras.Input(SHAPE, dtype="uint8")
    return keras.Model(pixels, head(layers.Flatten()(layers.Rescaling(1 / 255)(pixels))))


def dense(activation=None, **options):
    return layers.Dense(CLASSES, activation=activation, **options)


class Subclassed(keras.Model):
    def __init__(self, activation):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), dense(activation)

    def call(self, images):
        return self.dense(self.flatten(tf.cast(images, tf.float32)))


def subclassed(activation):
    model = Subclassed(activation)
    model(np.zeros((1, *SHAPE), np.uint8))
    return model


def nested(activation):
    inner = keras.Sequential(
        [keras.Input((36,)), layers.Dense(8, activation="relu"), dense(activation)]
    )
    return functional(inner)


def pooled(activation):
    pixels = keras.Input(SHAPE, dtype="uint8")
    maps = layers.Conv2D(CLASSES, 3, activation=activation)(layers.Rescaling(1 / 255)(pixels))
    return keras.Model(pixels, layers.GlobalAveragePooling2D()(maps))


def ensemble():
    return functional(
        lambda x: layers.Average()([keras.ops.log_softmax(dense()(x)) for _ in range(2)])
    )


GOOD = {
    "dense": lambda: functional(dense()),
    "linear by name": lambda: functional(lambda x: layers.Activation("linear")(dense("linear")(x))),
    "cast to float32": lambda: functional(
        lambda x: layers.Activation("linear", dtype="float32")(dense(dtype="mixed_bfloat16")(x))
    ),
    "reshaped": lambda: functional(lambda x: layers.Reshape((CLASSES,))(dense()(x))),
    "dropout": lambda: functional(lambda x: layers.Dropout(0.5)(dense()(x))),
    "nested": lambda: nested(None),
    "subclassed": lambda: subclassed(None),
    "pooled": lambda: pooled(None),
    "relu before the head": lambda: functional(
        lambda x: dense()(layers.Dense(4, activation="softmax")(x))
    ),
    "mean of log-softmax": ensemble,
    "divided by a temperature": lambda: functional(lambda x: dense()(x) / 2.0),
}

BAD = {
    **{
        name: (lambda name=name: functional(dense(name)))
        for name in ("softmax", "sigmoid", "relu", "tanh", "elu", "softplus")
    },
    "swish": lambda: functional(dense("silu")),
    "gelu": lambda: functional(dense("gelu")),
    "softmax layer": lambda: functional(lambda x: layers.Softmax()(dense()(x))),
    "activation layer": lambda: functional(lambda x: layers.Activation("softmax")(dense()(x))),
    "relu layer": lambda: functional(lambda x: layers.ReLU()(dense()(x))),
    "leaky relu layer": lambda: functional(lambda x: layers.LeakyReLU()(dense()(x))),
    "operation": lambda: functional(lambda x: keras.ops.softmax(dense()(x))),
    "behind a cast": lambda: functional(lambda x: keras.ops.cast(dense("softmax")(x), "float64")),
    "behind a reshape": lambda: functional(
        lambda x: layers.Reshape((CLASSES,))(dense("softmax")(x))
    ),
    "behind a dropout": lambda: functional(lambda x: layers.Dropout(0.5)(dense("sigmoid")(x))),
    "behind float32": lambda: functional(
        lambda x: layers.Activation("linear", dtype="float32")(dense("softmax")(x))
    ),
    "in a nested model": lambda: nested("softmax"),
    "in a subclassed model": lambda: subclassed("softmax"),
    "relu maps": lambda: pooled("relu"),
    "log-softmax of a softmax": lambda: functional(
        lambda x: keras.ops.log_softmax(dense("softmax")(x))
    ),
    "written out": lambda: functional(
        lambda x: (
            keras.ops.exp(dense()(x))
            / keras.ops.sum(keras.ops.exp(dense()(x)), axis=-1, keepdims=True)
        )
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_linear_heads_are_accepted(name):
    check_model(GOOD[name](), CLASSES, SHAPE)


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(name):
    with pytest.raises(ContractError, match=r"ends in \w+ \(at .*expected a linear layer"):
        check_model(BAD[name](), CLASSES, SHAPE)


def compiled(loss):
    model = functional(dense())
    model.compile(loss=loss)
    return model


def test_a_loss_that_knows_of_logits_is_accepted():
    check_model(compiled(keras.losses.SparseCategoricalCrossentropy(from_logits=True)), CLASSES)
    check_model(
        compiled(keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)),
        CLASSES,
    )


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "mse",
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.CategoricalCrossentropy(from_logits=False),
        keras.losses.BinaryCrossentropy(from_logits=True),
        None,
    ],
)
def test_any_other_loss_is_refused(loss):
    with pytest.raises(ContractError, match="from_logits=True"):
        check_model(compiled(loss), CLASSES)


def two_outputs():
    return functional(lambda x: [dense()(x), dense()(x)])


def two_inputs():
    one, other = keras.Input(SHAPE), keras.Input(SHAPE)
    return keras.Model([one, other], dense()(layers.Flatten()(layers.Add()([one, other]))))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: keras.Sequential([layers.Flatten(), dense()]), "no input shape"),
        (lambda: functional(layers.Dense(CLASSES + 1)), r"shape \(None, 4\), expected \(n, 3\)"),
        (two_outputs, "several outputs"),
        (two_inputs, "2 inputs"),
        (
            lambda: keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), dense()]),
            "takes images of shape",
        ),
    ],
)
def test_a_model_of_another_form_is_refused(build, says):
    with pytest.raises(ContractError, match=says):
        check_model(build(), CLASSES, SHAPE)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 50])
def test_probabilities_are_not_taken_for_logits(kind, rows):
    logits = np.random.default_rng(0).normal(0, 3, (rows, 10)).astype(kind)
    assert check_logits(logits, 10) is logits
    with pytest.raises(ContractError, match="they are probabilities"):
        check_logits(softmax(logits), 10)
    refuse_probabilities(np.abs(logits) + 1)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(
        ContractError, match=r"expected logits of shape \(n, 10\), got \(32, 28, 28\)"
    ):
        check_logits(np.zeros((32, 28, 28)), 10)
