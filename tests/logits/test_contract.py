"""Test the logits contract on the graphs of real Keras models of every kind."""

import numpy as np
import pytest

from nnbuild.errors import ContractError
from nnbuild.logits import check_logits, check_model, refuse_probabilities, softmax
from nnbuild.runtime.tensorflow import keras, tf

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


class Scale(layers.Layer):
    """Multiplies by a number that is learnt, or by what is made of it."""

    def __init__(self, shape_of_scale=keras.ops.exp, *, divide=False):
        super().__init__()
        self.shape_of_scale, self.divide = shape_of_scale, divide

    def build(self, _):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        scale = self.shape_of_scale(self.scale)
        return x / scale if self.divide else x * scale


class Mixture(layers.Layer):
    """Weights several logits by a softmax over weights that are learnt."""

    def build(self, shapes):
        self.mix = self.add_weight(shape=(len(shapes),), initializer="zeros", name="mix")

    def call(self, parts):
        shares = keras.ops.softmax(self.mix)
        return sum(part * shares[number] for number, part in enumerate(parts))


class Centres(layers.Layer):
    def build(self, shape):
        self.centres = self.add_weight(shape=(CLASSES, shape[-1]), name="centres")

    def call(self, x):
        return -keras.ops.sum(keras.ops.square(x[:, None] - self.centres), axis=-1)


def by_root_of_width(x):
    """Divides by what depends on the shape of an image's values only."""
    return x / tf.sqrt(tf.cast(tf.shape(x)[1], tf.float32))


def shares(x):
    return x / keras.ops.sum(x, axis=-1, keepdims=True)


def pooled_norm(activation):
    pixels = keras.Input(SHAPE, dtype="uint8")
    maps = layers.Conv2D(CLASSES, 3, activation=activation)(layers.Rescaling(1 / 255)(pixels))
    normed = layers.BatchNormalization()(maps)
    return keras.Model(pixels, layers.GlobalAveragePooling2D()(normed))


class Hidden(layers.Layer):
    """Softmax inside TensorFlow's control flow."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def call(self, x):
        return self.way(x)

    def compute_output_shape(self, shape):
        return shape


def in_a_branch(x):
    return tf.cond(tf.size(x) > 0, lambda: tf.nn.softmax(x), lambda: x)


def in_a_loop(x):
    return tf.while_loop(lambda i, _: i < 1, lambda i, y: (i + 1, tf.nn.softmax(y)), (0, x))[1]


def image_by_image(x):
    return tf.map_fn(tf.nn.softmax, x)


def in_a_function(x):
    return tf.function(lambda y: tf.nn.softmax(y) * 2.0, jit_compile=False)(x)


def hidden(way):
    return lambda: functional(lambda x: Hidden(way)(dense()(x)))


GOOD = {
    "batch norm": lambda: functional(lambda x: layers.BatchNormalization()(dense()(x))),
    "batch norm over maps": lambda: pooled_norm(None),
    "a learnt scale": lambda: functional(lambda x: Scale()(dense()(x))),
    "a learnt temperature": lambda: functional(
        lambda x: Scale(keras.ops.softplus, divide=True)(dense()(x))
    ),
    "a learnt scale within bounds": lambda: functional(
        lambda x: Scale(keras.ops.sigmoid)(dense()(x))
    ),
    "a learnt mixture": lambda: functional(lambda x: Mixture()([dense()(x), dense()(x)])),
    "by the root of the width": hidden(by_root_of_width),
    "a loop without softmax": hidden(
        lambda x: tf.while_loop(lambda i, _: i < 1, lambda i, y: (i + 1, y * 2.0), (0, x))[1]
    ),
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
    "softmax before batch norm": lambda: functional(
        lambda x: layers.BatchNormalization()(dense("softmax")(x))
    ),
    "softmax maps before batch norm": lambda: pooled_norm("softmax"),
    "softmax before a learnt scale": lambda: functional(lambda x: Scale()(dense("softmax")(x))),
    "a learnt scale before softmax": lambda: functional(
        lambda x: layers.Softmax()(Scale()(dense()(x)))
    ),
    "softmax with the classes in another order": lambda: functional(
        lambda x: keras.ops.take(dense("softmax")(x), [2, 0, 1], axis=1)
    ),
    "layer norm": lambda: functional(lambda x: layers.LayerNormalization()(dense()(x))),
    "unit norm": lambda: functional(lambda x: layers.UnitNormalization()(dense()(x))),
    "divided by the sum": lambda: functional(lambda x: shares(dense()(x))),
    "gated by the image": lambda: functional(lambda x: dense()(x) * dense("sigmoid")(x)),
    "largest of sigmoid maps": lambda: keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(CLASSES, 3, activation="sigmoid"),
            layers.GlobalMaxPooling2D(),
        ]
    ),
    "in a branch": hidden(in_a_branch),
    "in a loop": hidden(in_a_loop),
    "image by image": hidden(image_by_image),
    "in a function": hidden(in_a_function),
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
def test_contract_linear_head_is_accepted(name):
    check_model(GOOD[name](), CLASSES, SHAPE)


@pytest.mark.parametrize("name", BAD)
def test_contract_other_head_is_refused(name):
    with pytest.raises(ContractError, match=r"ends in \w+ \(at .*expected a linear layer"):
        check_model(BAD[name](), CLASSES, SHAPE)


def test_contract_distances_get_advice():
    with pytest.raises(ContractError, match=r"ends in Square .*squared distances to centres"):
        check_model(functional(Centres()), CLASSES, SHAPE)


def test_contract_hidden_softmax_is_refused():
    def in_python(x):
        found = tf.numpy_function(
            lambda y: np.exp(y) / np.exp(y).sum(1, keepdims=True), [x], "float32"
        )
        return tf.ensure_shape(found, (None, CLASSES))

    with pytest.raises(ContractError, match="they are probabilities"):
        check_model(hidden(in_python)(), CLASSES, SHAPE)


def compiled(loss):
    model = functional(dense())
    model.compile(loss=loss)
    return model


def test_contract_logits_loss_is_accepted():
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
def test_contract_other_loss_is_refused(loss):
    with pytest.raises(ContractError, match="from_logits=True"):
        check_model(compiled(loss), CLASSES)


def two_outputs():
    return functional(lambda x: [dense()(x), dense()(x)])


def returning(what):
    """A model that is no stack of layers, and returns what is made of its logits."""

    class Returning(keras.Model):
        def __init__(self):
            super().__init__()
            self.flatten, self.dense = layers.Flatten(), dense()

        def call(self, images):
            return what(self.dense(self.flatten(tf.cast(images, tf.float32))))

    model = Returning()
    model(np.zeros((1, *SHAPE), np.uint8))
    return model


def two_arguments():
    class Two(keras.Model):
        def call(self, one, other):
            return dense()(one + other)

    model = Two()
    model.built = True
    return model


def two_inputs():
    one, other = keras.Input(SHAPE), keras.Input(SHAPE)
    return keras.Model([one, other], dense()(layers.Flatten()(layers.Add()([one, other]))))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: keras.Sequential([layers.Flatten(), dense()]), "no input shape"),
        (lambda: Subclassed(None), "or call it on one image"),
        (two_arguments, "cannot take images of shape"),
        (
            lambda: functional(lambda x: {"logits": dense()(x)}),
            "returns a dict with 'logits', expected one tensor",
        ),
        (lambda: functional(lambda x: {"a": dense()(x), "b": dense()(x)}), "a dict with 'a', 'b'"),
        (lambda: returning(lambda x: [x]), "a list of one output"),
        (lambda: returning(lambda x: (x, x)), "several outputs"),
        (lambda: returning(lambda _: None), "returns NoneType"),
        (lambda: returning(lambda x: tf.cast(x, "int32")), "logits of int32, expected float32"),
        (lambda: returning(lambda x: tf.cast(x, "float16")), "logits of float16"),
        (lambda: functional(dense(dtype="bfloat16")), "logits of bfloat16"),
        (lambda: functional(lambda x: keras.ops.cast(dense()(x), "int32")), "logits of int32"),
        (
            lambda: functional(lambda x: layers.Reshape((1, CLASSES))(dense()(x))),
            "outputs of shape",
        ),
        (lambda: functional(layers.Dense(CLASSES + 1)), r"shape \(None, 4\), expected \(n, 3\)"),
        (two_outputs, "several outputs"),
        (two_inputs, "2 inputs"),
        (
            lambda: keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), dense()]),
            "takes images of shape",
        ),
    ],
)
def test_contract_other_output_is_refused(build, says):
    with pytest.raises(ContractError, match=says):
        check_model(build(), CLASSES, SHAPE)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 50])
def test_check_logits_refuses_probabilities(kind, rows):
    logits = np.random.default_rng(0).normal(0, 3, (rows, 10)).astype(kind)
    assert check_logits(logits, 10) is logits
    with pytest.raises(ContractError, match="they are probabilities"):
        check_logits(softmax(logits), 10)
    refuse_probabilities(np.abs(logits) + 1)


def test_check_logits_refuses_other_shape():
    with pytest.raises(
        ContractError, match=r"expected logits of shape \(n, 10\), got \(32, 28, 28\)"
    ):
        check_logits(np.zeros((32, 28, 28)), 10)
