"""Columns: networks side by side, each of which learns from its own share of every batch.

At scoring every column sees every image in several views, and all their features are averaged. It is a way to spend a
long fit: once more epochs no longer make one network better, the mean of several that had a part of the epochs each is.
Columns that are averaged at scoring are those of Cireşan et al., "Multi-column deep neural networks" (arXiv 1202.2745).
"""

from collections.abc import Callable, Sequence
from typing import Any

from nnbuild.runtime.tensorflow import keras

ops = keras.ops
Column = Callable[[Any, str], Any]

_VIEWS = (
    (0, 1),
    (1, 0),
    (1, 2),
    (2, 1),
)  # the corner of each view in an image with a margin of one pixel


@keras.saving.register_keras_serializable("nnbuild")
class TestTimeAugmentation(keras.layers.Layer):  # type: ignore[misc]
    """Images as they are while training; otherwise each moved by a pixel to the four sides, one view behind the other.

    What moves in is zero. The image itself is not among the views: with it they were no better (docs/development/experiments/accuracy.md).
    """

    def call(self, images: Any, training: bool = False) -> Any:  # noqa: FBT001, FBT002  (Keras passes it)
        """The images, or four times as many."""
        if training:
            return images
        height, width = images.shape[1:3]
        framed = ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return ops.concatenate(
            [framed[:, top : top + height, left : left + width] for top, left in _VIEWS], axis=0
        )

    def compute_output_spec(self, images: Any, training: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
        """Some images of the same kind."""
        return keras.KerasTensor((None, *images.shape[1:]), images.dtype)


@keras.saving.register_keras_serializable("nnbuild")
class BatchShard(keras.layers.Layer):  # type: ignore[misc]
    """A column's share of the batch while training, and all of the batch otherwise.

    Shares are as equal as can be, and none is empty, which batch norm could not bear: a column for which nothing is
    left gets the last image again.

    Attributes:
        column: its number, from 0.
        columns: how many there are.
    """

    def __init__(self, column: int, columns: int, **layer: Any) -> None:
        super().__init__(**layer)
        self.column, self.columns = column, columns

    def call(self, batch: Any, training: bool = False) -> Any:  # noqa: FBT001, FBT002  (Keras passes it)
        """The rows of one column."""
        if not training:
            return batch
        count = ops.shape(batch)[0]
        size = (count + self.columns - 1) // self.columns
        first = ops.minimum(self.column * size, count - 1)
        last = ops.minimum((self.column + 1) * size, count)
        return batch[first : ops.maximum(first + 1, last)]

    def compute_output_spec(self, batch: Any, training: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
        """Some rows of the same kind."""
        return keras.KerasTensor((None, *batch.shape[1:]), batch.dtype)

    def get_config(self) -> dict[str, Any]:
        """What `keras.saving` needs to build it again."""
        return {**super().get_config(), "column": self.column, "columns": self.columns}


@keras.saving.register_keras_serializable("nnbuild")
class MergeColumns(keras.layers.Layer):  # type: ignore[misc]
    """The columns' features: while training one behind the other, so that each row has its label; else an image's mean.

    An image's rows are as many as it has views, times the columns.
    """

    def call(self, batch_and_columns: list[Any], training: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Features for each image of the batch."""
        batch, *columns = batch_and_columns
        count, features = ops.shape(batch)[0], ops.concatenate(columns, axis=0)
        if training:
            return features[:count]  # without the last image's copies
        return ops.mean(ops.reshape(features, (-1, count, features.shape[-1])), axis=0)

    def compute_output_spec(self, batch_and_columns: list[Any], training: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
        """Features of one column's shape, for each image."""
        return keras.KerasTensor(batch_and_columns[1].shape, batch_and_columns[1].dtype)


def multi_column(images: Any, makers: Sequence[Column]) -> Any:
    """Several columns on a batch of images.

    Args:
        images: Keras tensor of shape (n, height, width, channels).
        makers: each makes features of images; its second argument goes before the names of its layers. All of them make
            equally many.

    Returns:
        Keras tensor of features.
    """
    views = TestTimeAugmentation(name="views")(images)
    features = []
    for place, make in enumerate(makers):
        share = BatchShard(place, len(makers), name=f"share_{place + 1}")(views)
        features.append(make(share, f"column_{place + 1}_"))
    return MergeColumns(name="joined")([images, *features])
