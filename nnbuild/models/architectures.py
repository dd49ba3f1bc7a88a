"""The named networks, from uint8 pixels, which they rescale, to logits.

Every layer has a name and, if it draws random numbers, a seed, so that the same configuration gives
the same file in any process.
"""

from collections.abc import Callable

from nnbuild.config.sections import ModelConfig
from nnbuild.models.multi_column import Column, multi_column
from nnbuild.runtime.tensorflow import keras

layers = keras.layers
Shape = tuple[int, int, int]
Builder = Callable[[keras.KerasTensor, ModelConfig, int], keras.KerasTensor]
"""Function from rescaled pixels, settings and the seed of dropout to features."""
Blocks = tuple[tuple[tuple[int, str], ...], ...]
"""Filters and padding of each convolution of each block."""


def _dense_stack(
    pixels: keras.KerasTensor, units: tuple[int, ...], config: ModelConfig
) -> keras.KerasTensor:
    penalty = keras.regularizers.L2(config.l2) if config.l2 else None
    features = layers.Flatten(name="flatten")(pixels)
    for number, width in enumerate(units, start=1):
        features = layers.Dense(
            width, activation="relu", kernel_regularizer=penalty, name=f"hidden_{number}"
        )(features)
    return features


def _dropout(features: keras.KerasTensor, config: ModelConfig, seed: int) -> keras.KerasTensor:
    if not config.dropout:
        return features
    return layers.Dropout(config.dropout, seed=seed, name="dropout")(features)


def lab(pixels: keras.KerasTensor, config: ModelConfig, seed: int) -> keras.KerasTensor:
    """Connect two dense layers of 25 and 15 relu units."""
    return _dropout(_dense_stack(pixels, (25, 15), config), config, seed)


def regularized(pixels: keras.KerasTensor, config: ModelConfig, seed: int) -> keras.KerasTensor:
    """Connect two dense layers of 120 and 40 relu units with an L2 penalty."""
    return _dropout(_dense_stack(pixels, (120, 40), config), config, seed)


def convnet(pixels: keras.KerasTensor, config: ModelConfig, seed: int) -> keras.KerasTensor:
    """Connect two blocks of convolution and pooling.

    As in Keras's "Simple MNIST convnet" (https://keras.io/examples/vision/mnist_convnet/).
    """
    features = pixels
    for number, filters in enumerate((32, 64), start=1):
        features = layers.Conv2D(filters, 3, activation="relu", name=f"convolution_{number}")(
            features
        )
        features = layers.MaxPooling2D(2, padding="same", name=f"pool_{number}")(features)
    return _dropout(layers.Flatten(name="flatten")(features), config, seed)


def fast(pixels: keras.KerasTensor, config: ModelConfig, seed: int) -> keras.KerasTensor:
    """Connect few small convolutions on halved images: the least arithmetic that reaches 99 %."""
    features = layers.Conv2D(
        8, 5, strides=2, padding="same", activation="relu", name="convolution_1"
    )(pixels)
    features = layers.Conv2D(16, 3, padding="same", name="convolution_2")(features)
    features = layers.MaxPooling2D(2, padding="same", name="pool")(features)
    # After the pooling, relu gives the same values for a quarter of the work.
    features = layers.Activation("relu", name="relu_2")(features)
    features = layers.Conv2D(32, 3, padding="same", activation="relu", name="convolution_3")(
        features
    )
    features = layers.Flatten(name="flatten")(features)
    return _dropout(layers.Dense(64, activation="relu", name="hidden")(features), config, seed)


def accurate(pixels: keras.KerasTensor, config: ModelConfig, seed: int) -> keras.KerasTensor:
    """Connect three columns of five convolutions.

    Their first kernels and activations differ, so that their errors are less correlated.
    """
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

    columns = [column(3, "hard_silu"), column(5, "hard_silu"), column(7, "silu")]
    return _dropout(multi_column(pixels, columns), config, seed)


def tiny(pixels: keras.KerasTensor, config: ModelConfig, seed: int) -> keras.KerasTensor:
    """Connect five 3×3 convolutions of 8 to 16 filters, with batch normalization after each block.

    On MNIST this makes fewer than 8,000 weights.
    """
    blocks: Blocks = (
        ((8, "valid"), (12, "valid")),
        ((16, "valid"), (16, "valid")),
        ((16, "same"),),
    )
    features = _convolutions(pixels, blocks, first_kernel=3, activation="relu", norm_each=False)
    return _dropout(features, config, seed)


def _convolutions(
    pixels: keras.KerasTensor,
    blocks: Blocks,
    *,
    first_kernel: int,
    activation: str,
    norm_each: bool,
    prefix: str = "",
) -> keras.KerasTensor:
    """Connect convolutions, with pooling between the blocks and a mean over all pixels at the end.

    The last convolution of a block is normalized after its pooling, on a quarter of the values:
    batch normalization at full size took half of a step on two processors.

    Args:
        pixels: Rescaled pixels.
        blocks: Filters and padding of each convolution.
        first_kernel: Kernel size of the first convolution; the others have 3.
        activation: Keras's name of the activation.
        norm_each: Whether to normalize each convolution, or only the last one of each block.
        prefix: Prefix of the names of the layers.
    """
    features, number = pixels, 0
    for block, convolutions in enumerate(blocks, start=1):
        for position, (filters, padding) in enumerate(convolutions, start=1):
            number += 1
            kernel = first_kernel if number == 1 else 3
            too_small = min(features.shape[1:3]) <= kernel
            last = position == len(convolutions)
            norm = last or norm_each
            features = layers.Conv2D(
                filters,
                kernel,
                padding="same" if too_small else padding,
                use_bias=not norm,  # the normalization has its own
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


def build_network(config: ModelConfig, shape: Shape, classes: int, seed: int) -> keras.Model:
    """Build a named network.

    Args:
        config: Settings of the network, whose name is in `NETWORKS`.
        shape: Height and width of an image in pixels, and number of channels.
        classes: Number of logits.
        seed: Seed of dropout; the weights follow Keras's global seed.

    Returns:
        Uncompiled model from uint8 pixels of shape (n, *shape) to float32 logits of shape
        (n, classes).
    """
    pixels = keras.Input(shape, dtype="uint8", name="pixels")
    rescaled = layers.Rescaling(1 / 255, name="rescale")(pixels)
    features = NETWORKS[config.name](rescaled, config, seed)
    logits = layers.Dense(classes, dtype="float32", name="logits")(features)
    return keras.Model(pixels, logits, name=config.name)
