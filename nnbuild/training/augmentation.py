"""Random augmentation of training images, which depends on seed, epoch and step alone."""

from collections.abc import Callable

from nnbuild.runtime.tensorflow import tf

Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Function of images, shape (n, height, width, channels), and an int64 seed of shape (2,)."""


def shift(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Shift each image by up to two pixels vertically and horizontally; the margin is 0."""
    count = tf.shape(images)[0]
    moves = tf.random.stateless_uniform((count, 2), seed, -2, 3, tf.int32)
    zeros, ones = tf.zeros(count), tf.ones(count)
    across, down = tf.cast(moves[:, 0], tf.float32), tf.cast(moves[:, 1], tf.float32)
    return _transform(
        images, tf.stack([ones, zeros, across, zeros, ones, down, zeros, zeros], axis=1), "NEAREST"
    )


def affine(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Turn, scale, shear and shift each image by a random amount.

    It is turned by up to 12°, scaled by 12 %, sheared by 0.15 and shifted by a tenth of its size.
    The margin is 0.
    """
    shape = tf.shape(images)
    height, width = tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
    draws = tf.random.stateless_uniform((shape[0], 5), seed, -1.0, 1.0)
    angle, scale, shear = 0.21 * draws[:, 0], 1 + 0.12 * draws[:, 1], 0.15 * draws[:, 2]
    cosine, sine = tf.cos(angle) / scale, tf.sin(angle) / scale
    a, b, c, d = cosine, shear * cosine - sine, sine, shear * sine + cosine
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    across = middle_x - a * middle_x - b * middle_y + 0.1 * width * draws[:, 3]
    down = middle_y - c * middle_x - d * middle_y + 0.1 * height * draws[:, 4]
    zeros = tf.zeros_like(a)
    return _transform(
        images, tf.stack([a, b, across, c, d, down, zeros, zeros], axis=1), "BILINEAR"
    )


def _transform(images: tf.Tensor, transforms: tf.Tensor, interpolation: str) -> tf.Tensor:
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(moved, images.shape)


def none(images: tf.Tensor, _seed: tf.Tensor) -> tf.Tensor:
    """Return the images unchanged."""
    return images


AUGMENTATIONS: dict[str, Augment] = {"none": none, "shift": shift, "affine": affine}
