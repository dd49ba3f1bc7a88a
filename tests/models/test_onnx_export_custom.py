"""Users' own networks as ONNX: an export scores like Keras, or is refused."""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from keras import layers, ops

from nnbuild import logits
from nnbuild.errors import ContractError
from nnbuild.models import seeded
from nnbuild.models.onnx_export import export_onnx
from nnbuild.pipeline import export

SHAPE, CLASSES = (12, 12, 1), 5
PIXELS = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)


def stack(*between, rescale=True):
    """Return a network with layers between the pixels and a linear head."""

    def build():
        pixels = keras.Input(SHAPE)
        x = layers.Rescaling(1 / 255)(pixels) if rescale else pixels
        for each in between:
            x = each()(x)
        return keras.Model(pixels, layers.Dense(CLASSES)(layers.Flatten()(x)))

    return build


def adapted():
    layer = layers.Normalization()
    layer.adapt(PIXELS.astype(np.float32))
    return layer


def by_pixel():
    layer = layers.Normalization(axis=(1, 2))  # more numbers than TensorFlow stores in a graph
    layer.adapt(PIXELS.astype(np.float32)[..., 0])
    return layer


def attention():
    pixels = keras.Input(SHAPE)
    x = layers.Dense(8)(layers.Reshape(SHAPE[:2])(layers.Rescaling(1 / 255)(pixels)))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(pixels, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


def vision_transformer():
    pixels = keras.Input(SHAPE)
    x = layers.Conv2D(12, 4, strides=4)(layers.Rescaling(1 / 255)(pixels))
    x = layers.Reshape((9, 12))(x)
    x = x + layers.Embedding(9, 12)(ops.arange(9))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 6)(y, y)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(12)(layers.Dense(24, activation="gelu")(y))
    return keras.Model(
        pixels, layers.Dense(CLASSES)(layers.Flatten()(layers.LayerNormalization()(x)))
    )


def mobile_net():
    pixels = keras.Input(SHAPE)
    x = layers.Concatenate()([layers.Rescaling(1 / 127.5, -1)(layers.Resizing(32, 32)(pixels))] * 3)
    body = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.1, include_top=False, weights=None, pooling="avg"
    )
    return keras.Model(pixels, layers.Dense(CLASSES)(body(x)))


def resized():
    pixels = keras.Input(SHAPE)
    x = layers.Resizing(9, 9)(layers.Rescaling(1 / 255)(pixels))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3)(x)))
    return keras.Model(pixels, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def normed_head():
    pixels = keras.Input(SHAPE)
    x = layers.Dense(CLASSES)(layers.Flatten()(layers.Rescaling(1 / 255)(pixels)))
    return keras.Model(pixels, layers.BatchNormalization()(x))


class Plain(keras.Model):
    """Model with a tensor that is not a weight, as user code may have."""

    def __init__(self):
        super().__init__()
        self.offset = tf.constant(np.random.default_rng(1).normal(size=(1, *SHAPE)), tf.float32)
        self.hidden, self.head = layers.Dense(8, activation="relu"), layers.Dense(CLASSES)

    def call(self, images):
        x = ops.cast(images, "float32") / 255 - self.offset
        return self.head(self.hidden(ops.reshape(x, (-1, SHAPE[0] * SHAPE[1]))))


def subclassed():
    model = Plain()
    model(PIXELS[:1])
    return model


def in_float64():
    pixels = keras.Input(SHAPE)
    x = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    return keras.Model(pixels, layers.Dense(CLASSES, dtype="float64")(x))


EXPORTED = {
    "normalization": stack(lambda: layers.Normalization(mean=33.0, variance=6000.0), rescale=False),
    "adapted normalization": stack(adapted, rescale=False),
    "normalization by pixel": stack(lambda: layers.Reshape(SHAPE[:2]), by_pixel, rescale=False),
    "exact gelu": stack(lambda: layers.Dense(6, activation="gelu")),
    "mish and selu": stack(
        lambda: layers.Dense(6, activation="mish"), lambda: layers.Dense(6, activation="selu")
    ),
    "attention": attention,
    "vision transformer": vision_transformer,
    "MobileNetV2": mobile_net,
    "resizing before batch norm": resized,
    "batch norm behind the head": normed_head,
    "flips and turns": stack(
        layers.RandomFlip,
        lambda: layers.RandomRotation(0.1),
        lambda: layers.RandomZoom(0.1),
    ),
    "other augmentation": stack(
        lambda: layers.RandomTranslation(0.1, 0.1),
        lambda: layers.RandomContrast(0.1),
        lambda: layers.RandomBrightness(0.1, value_range=(0, 1)),
        lambda: layers.GaussianNoise(0.1),
    ),
    "dropouts": stack(lambda: layers.SpatialDropout2D(0.3), lambda: layers.GaussianDropout(0.3)),
    "group norm": stack(lambda: layers.Conv2D(8, 3), lambda: layers.GroupNormalization(4)),
    "separable and transposed": stack(
        lambda: layers.SeparableConv2D(4, 3), lambda: layers.Conv2DTranspose(3, 3, strides=2)
    ),
    "depthwise": stack(lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), layers.PReLU),
    "recurrent": stack(lambda: layers.Reshape(SHAPE[:2]), lambda: layers.LSTM(6)),
    "padded and cropped": stack(
        lambda: layers.ZeroPadding2D(2),
        lambda: layers.Cropping2D(1),
        lambda: layers.UpSampling2D(2),
    ),
    "subclassed": subclassed,
    "a head in float64": in_float64,
}


@pytest.mark.parametrize("name", EXPORTED)
@seeded(1)
def test_user_model_export_equals_keras(tmp_path, name):
    model = EXPORTED[name]()
    logits.check_model(model, CLASSES, SHAPE)
    rng = np.random.default_rng(2)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    path = tmp_path / "model.onnx"
    export_onnx(model, path, SHAPE)
    assert export._largest_difference(model, path, PIXELS) <= 1e-4
    graph = onnx.load(path).graph
    assert [each.name for each in graph.input] == ["pixels"]


class Random(layers.Layer):
    def call(self, x):
        return x + keras.random.normal(ops.shape(x), stddev=0.1)


class Bessel(layers.Layer):
    def call(self, x):
        return tf.math.bessel_i0e(x)


class ByBatch(layers.Layer):
    """Model whose logits of an image depend on the other images of the batch."""

    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


REFUSED = {
    Random: r"differ from Keras's|ONNX has no operation|another class",
    Bessel: r"ONNX has no operation for BesselI0e",
    ByBatch: r"differ from Keras's|another class",
}


@pytest.mark.parametrize("kind", REFUSED)
@seeded(1)
def test_unequal_export_raises(tmp_path, kind):
    model, path = stack(kind)(), tmp_path / "model.onnx"

    def export_and_compare():
        export_onnx(model, path, SHAPE)
        export._largest_difference(model, path, PIXELS)

    with pytest.raises(ContractError, match=REFUSED[kind]):
        export_and_compare()
