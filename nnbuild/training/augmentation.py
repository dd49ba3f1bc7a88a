"""Random changes of a batch of training images. The draw depends on seed, epoch and step, and on nothing else."""

from collections.abc import Callable
from typing import Any

from nnbuild.runtime.tensorflow import tf

Augment = Callable[[Any, Any], Any]


def shift(images: Any, seed: Any) -> Any:
    """Move each image by up to two pixels up, down, left or right; what comes in is 0."""
    count = tf.shape(images)[0]
    moves = tf.random.stateless_uniform((count, 2), seed, -2, 3, tf.int32)
    zeros, ones = tf.zeros(count), tf.ones(count)
    across, down = tf.cast(moves[:, 0], tf.float32), tf.cast(moves[:, 1], tf.float32)
    return _moved(
        images, tf.stack([ones, zeros, across, zeros, ones, down, zeros, zeros], axis=1), "NEAREST"
    )


def affine(images: Any, seed: Any) -> Any:
    """Turn by up to 12°, scale by up to 12 %, shear by up to 0.15 and move by up to a tenth of the size, each image."""
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
    return _moved(images, tf.stack([a, b, across, c, d, down, zeros, zeros], axis=1), "BILINEAR")


def _moved(images: Any, transforms: Any, interpolation: str) -> Any:
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(moved, images.shape)


def none(images: Any, seed: Any) -> Any:  # noqa: ARG001  (every augmentation is called alike)
    """Leave the images as they are."""
    return images


AUGMENTATIONS: dict[str, Augment] = {"none": none, "shift": shift, "affine": affine}
