"""Multi-column networks: parallel columns, each of which learns from its own shard of every batch.

When scoring, every column sees every image in several views (test-time augmentation), and all
features are averaged. This makes use of a long fit: when more epochs no longer improve one network,
the mean of several networks with fewer epochs each is still better. The columns are those of
Cireşan et al., "Multi-column deep neural networks" (arXiv 1202.2745).
"""

from collections.abc import Callable, Sequence
from typing import Any

from nnbuild.runtime.tensorflow import keras, tf

ops = keras.ops
Column = Callable[[keras.KerasTensor, str], keras.KerasTensor]
"""Function from images and the prefix of its layers' names to features."""

# Top and left of each view in an image with a margin of one pixel.
_VIEWS = ((0, 1), (1, 0), (1, 2), (2, 1))


@keras.saving.register_keras_serializable("nnbuild")
class TestTimeAugmentation(keras.layers.Layer):  # type: ignore[misc]
    """Layer that shifts images by one pixel to each of the four sides, unless it is training.

    The views are concatenated one after another; the margin is 0. The image itself is not a view:
    with it, the results were not better (docs/development/experiments/accuracy.md).
    """

    def call(self, images: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """Return the images when training, otherwise four views of each."""
        if training:
            return images
        height, width = images.shape[1:3]
        framed = ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return ops.concatenate(
            [framed[:, top : top + height, left : left + width] for top, left in _VIEWS], axis=0
        )

    def compute_output_spec(self, images: keras.KerasTensor, **_: Any) -> keras.KerasTensor:
        """Return the shape of the images, with an unknown number of them."""
        return keras.KerasTensor((None, *images.shape[1:]), images.dtype)


@keras.saving.register_keras_serializable("nnbuild")
class BatchShard(keras.layers.Layer):  # type: ignore[misc]
    """Layer that selects a column's shard of the batch, or the whole batch unless it is training.

    The shards are as equal in size as possible. A column without images gets the last image again,
    since batch normalization does not support an empty shard.

    Attributes:
        column: Number of the column, from 0.
        columns: Number of columns.
    """

    def __init__(self, column: int, columns: int, **layer: Any) -> None:
        super().__init__(**layer)
        self.column, self.columns = column, columns

    def call(self, batch: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """Return the rows of the column."""
        if not training:
            return batch
        count = ops.shape(batch)[0]
        size = (count + self.columns - 1) // self.columns
        first = ops.minimum(self.column * size, count - 1)
        last = ops.minimum((self.column + 1) * size, count)
        return batch[first : ops.maximum(first + 1, last)]

    def compute_output_spec(self, batch: keras.KerasTensor, **_: Any) -> keras.KerasTensor:
        """Return the shape of the images, with an unknown number of rows."""
        return keras.KerasTensor((None, *batch.shape[1:]), batch.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments for `keras.saving` to build it again."""
        return {**super().get_config(), "column": self.column, "columns": self.columns}


@keras.saving.register_keras_serializable("nnbuild")
class MergeColumns(keras.layers.Layer):  # type: ignore[misc]
    """Layer that merges the columns' features: the mean for each image, unless it is training.

    When training, the features are concatenated in the order of the shards, so that each row has
    its label. Otherwise an image has a row for each view and column.
    """

    def call(self, batch_and_columns: list[tf.Tensor], *, training: bool = False) -> tf.Tensor:
        """Return the features for each image of the batch."""
        batch, *columns = batch_and_columns
        count, features = ops.shape(batch)[0], ops.concatenate(columns, axis=0)
        if training:
            return features[:count]  # without copies of the last image
        return ops.mean(ops.reshape(features, (-1, count, features.shape[-1])), axis=0)

    def compute_output_spec(
        self, batch_and_columns: list[keras.KerasTensor], **_: Any
    ) -> keras.KerasTensor:
        """Return features of the shape of one column's."""
        return keras.KerasTensor(batch_and_columns[1].shape, batch_and_columns[1].dtype)


def multi_column(images: keras.KerasTensor, builders: Sequence[Column]) -> keras.KerasTensor:
    """Connect several columns to images.

    Args:
        images: Images of shape (n, height, width, channels).
        builders: Functions that build a column each, all with the same number of features.

    Returns:
        Features of shape (n, features).
    """
    views = TestTimeAugmentation(name="views")(images)
    features = []
    for number, build in enumerate(builders):
        shard = BatchShard(number, len(builders), name=f"share_{number + 1}")(views)
        features.append(build(shard, f"column_{number + 1}_"))
    return MergeColumns(name="joined")([images, *features])
