"""The named networks. Each takes uint8 pixels, rescales them itself, and ends in a linear layer: logits out.

Every layer has a name and, where it draws random numbers, a seed, so that a saved network is the same
network in any process.
"""

from collections.abc import Callable
from typing import Any

from nnbuild.config.sections import ModelConfig
from nnbuild.models.multi_column import Column, multi_column
from nnbuild.runtime.tensorflow import keras

layers = keras.layers
Shape = tuple[int, int, int]
Builder = Callable[[Any, ModelConfig, int], Any]
Blocks = tuple[tuple[tuple[int, str], ...], ...]  # of each convolution: filters and padding


def _dense_stack(pixels: Any, units: tuple[int, ...], config: ModelConfig) -> Any:
    penalty = keras.regularizers.L2(config.l2) if config.l2 else None
    features = layers.Flatten(name="flatten")(pixels)
    for number, width in enumerate(units, start=1):
        features = layers.Dense(
            width, activation="relu", kernel_regularizer=penalty, name=f"hidden_{number}"
        )(features)
    return features


def _dropped(features: Any, config: ModelConfig, seed: int) -> Any:
    return (
        layers.Dropout(config.dropout, seed=seed, name="dropout")(features)
        if config.dropout
        else features
    )


def lab(pixels: Any, config: ModelConfig, seed: int) -> Any:
    """The guide's lab: 25 and 15 relu units."""
    return _dropped(_dense_stack(pixels, (25, 15), config), config, seed)


def regularized(pixels: Any, config: ModelConfig, seed: int) -> Any:
    """The guide's `Neural_Net_Build.py`: 120 and 40 relu units with an L2 penalty."""
    return _dropped(_dense_stack(pixels, (120, 40), config), config, seed)


def convnet(pixels: Any, config: ModelConfig, seed: int) -> Any:
    """keras.io's "Simple MNIST convnet" (https://keras.io/examples/vision/mnist_convnet/)."""
    features = pixels
    for number, filters in enumerate((32, 64), start=1):
        features = layers.Conv2D(filters, 3, activation="relu", name=f"convolution_{number}")(
            features
        )
        features = layers.MaxPooling2D(2, padding="same", name=f"pool_{number}")(features)
    return _dropped(layers.Flatten(name="flatten")(features), config, seed)


def fast(pixels: Any, config: ModelConfig, seed: int) -> Any:
    """Few, small convolutions, halved in size at once: the least arithmetic that reaches 99 %."""
    features = layers.Conv2D(
        8, 5, strides=2, padding="same", activation="relu", name="convolution_1"
    )(pixels)
    features = layers.Conv2D(16, 3, padding="same", name="convolution_2")(features)
    features = layers.MaxPooling2D(2, padding="same", name="pool")(features)
    features = layers.Activation("relu", name="relu_2")(
        features
    )  # behind the pool: the same values, a quarter of the work
    features = layers.Conv2D(32, 3, padding="same", activation="relu", name="convolution_3")(
        features
    )
    features = layers.Flatten(name="flatten")(features)
    return _dropped(layers.Dense(64, activation="relu", name="hidden")(features), config, seed)


def accurate(pixels: Any, config: ModelConfig, seed: int) -> Any:
    """Three columns of five convolutions, unlike in first kernel and activation, so that they err less alike."""
    blocks: Blocks = (
        ((32, "valid"),),
        ((64, "valid"), (64, "valid")),
        ((128, "same"), (128, "valid")),
    )

    def column(first_kernel: int, activation: str) -> Column:
        return lambda share, prefix: _convolutions(
            share,
            blocks,
            first_kernel=first_kernel,
            activation=activation,
            norm_each=True,
            prefix=prefix,
        )

    makers = [column(3, "hard_silu"), column(5, "hard_silu"), column(7, "silu")]
    return _dropped(multi_column(pixels, makers), config, seed)


def tiny(pixels: Any, config: ModelConfig, seed: int) -> Any:
    """Five 3×3 convolutions of 8 to 16 filters, batch norm behind each block: fewer than 8,000 weights on MNIST."""
    blocks: Blocks = (
        ((8, "valid"), (12, "valid")),
        ((16, "valid"), (16, "valid")),
        ((16, "same"),),
    )
    features = _convolutions(pixels, blocks, first_kernel=3, activation="relu", norm_each=False)
    return _dropped(features, config, seed)


def _convolutions(
    pixels: Any,
    blocks: Blocks,
    *,
    first_kernel: int,
    activation: str,
    norm_each: bool,
    prefix: str = "",
) -> Any:
    """Convolutions, the size halved between the blocks, and the mean over what is left.

    A block's last convolution is normalised behind its pool, where there is a quarter of the numbers: batch norm at
    full size took half of a step on two processors. Those before it are normalised where `norm_each` says so.
    """
    features, number = pixels, 0
    for block, convolutions in enumerate(blocks, start=1):
        for place, (filters, padding) in enumerate(convolutions, start=1):
            number += 1
            kernel = first_kernel if number == 1 else 3
            too_small = min(features.shape[1:3]) <= kernel
            last = place == len(convolutions)
            norm = last or norm_each
            features = layers.Conv2D(
                filters,
                kernel,
                padding="same" if too_small else padding,
                use_bias=not norm,  # the norm brings its own
                name=f"{prefix}convolution_{number}",
            )(features)
            if last and block < len(blocks):
                features = layers.MaxPooling2D(2, padding="same", name=f"{prefix}pool_{block}")(
                    features
                )
            if norm:
                features = layers.BatchNormalization(name=f"{prefix}norm_{number}")(features)
            features = layers.Activation(activation, name=f"{prefix}{activation}_{number}")(
                features
            )
    return layers.GlobalAveragePooling2D(name=f"{prefix}average")(features)


NETWORKS: dict[str, Builder] = {
    "lab": lab,
    "regularized": regularized,
    "convnet": convnet,
    "fast": fast,
    "accurate": accurate,
    "tiny": tiny,
}


def build_network(config: ModelConfig, shape: Shape, classes: int, seed: int) -> Any:
    """Build a named network.

    Args:
        config: with the name of one of `NETWORKS`.
        shape: height and width in pixels, and channels.
        classes: how many logits there are.
        seed: of the dropout; the weights follow Keras's global seed.

    Returns:
        An uncompiled model: uint8 pixels of shape (n, *shape) in, float32 logits of shape (n, classes) out.
    """
    pixels = keras.Input(shape, dtype="uint8", name="pixels")
    rescaled = layers.Rescaling(1 / 255, name="rescale")(pixels)
    features = NETWORKS[config.name](rescaled, config, seed)
    logits = layers.Dense(classes, dtype="float32", name="logits")(features)
    return keras.Model(pixels, logits, name=config.name)
