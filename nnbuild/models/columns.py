"""Columns: equal networks side by side, each of which learns from its own share of every batch.

At scoring every column sees every image, and their features are averaged. It is a way to spend a long fit: once more
epochs no longer make one network better, the mean of several that had a part of the epochs each is. Columns that are
averaged at scoring are those of Cireşan et al., "Multi-column deep neural networks" (arXiv 1202.2745).
"""

from collections.abc import Callable
from typing import Any

from nnbuild.backend import keras

ops = keras.ops


@keras.saving.register_keras_serializable("nnbuild")
class Share(keras.layers.Layer):  # type: ignore[misc]
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
class Joined(keras.layers.Layer):  # type: ignore[misc]
    """The columns' features: one behind the other while training, so that each row has its label; else their mean."""

    def call(self, batch_and_columns: list[Any], training: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Features for each image of the batch."""
        batch, *columns = batch_and_columns
        if training:
            return ops.concatenate(columns, axis=0)[: ops.shape(batch)[0]]  # without the last image's copies
        return ops.mean(ops.stack(columns, axis=0), axis=0)

    def compute_output_spec(self, batch_and_columns: list[Any], training: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
        """Features of one column's shape, for each image."""
        return keras.KerasTensor(batch_and_columns[1].shape, batch_and_columns[1].dtype)


def columns(batch: Any, column: Callable[[Any, str], Any], count: int) -> Any:
    """Several columns on a batch.

    Args:
        batch: Keras tensor of images.
        column: makes features of images; its second argument goes before the names of its layers.
        count: of the columns.

    Returns:
        Keras tensor of features.
    """
    shares = [Share(number, count, name=f"share_{number + 1}")(batch) for number in range(count)]
    features = [column(share, f"column_{number}_") for number, share in enumerate(shares, start=1)]
    return Joined(name="joined")([batch, *features])
