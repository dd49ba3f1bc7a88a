"""Splits as Arrow tables."""

import numpy as np
import pyarrow as pa
import pytest
from data_files import tiny

from nnbuild.data.dataset import Split
from nnbuild.data.split_table import split_from_table, split_table
from nnbuild.errors import DataError


def some_split(rows=40, shape=(6, 6, 1)) -> Split:
    images = tiny(shape=shape, train=rows)
    return Split(images.train_images, images.train_labels.astype(np.int16))


def test_table_and_slices_keep_the_split():
    split = some_split(shape=(5, 7, 3))
    table = split_table(split)
    assert table.schema.field("image").type == pa.binary(105)
    assert table.schema.field("label").type == pa.int16()
    np.testing.assert_array_equal(split_from_table(table).images, split.images)
    part = split_from_table(table.slice(7, 11))
    np.testing.assert_array_equal(part.images, split.images[7:18])
    np.testing.assert_array_equal(part.labels, split.labels[7:18])
    twice = split_from_table(pa.concat_tables([table.slice(30), table.slice(0, 5)]))
    np.testing.assert_array_equal(
        twice.images, np.concatenate([split.images[30:], split.images[:5]])
    )
    assert len(split_from_table(table.slice(0, 0))) == 0


def test_other_tables_are_refused():
    table = split_table(some_split())
    metadata = table.schema.metadata
    for other in (
        table.replace_schema_metadata(None),
        table.replace_schema_metadata(metadata | {b"nnbuild.schema_version": b"99"}),
        table.replace_schema_metadata(metadata | {b"height": b"7"}),
        table.replace_schema_metadata(metadata | {b"width": b"-6"}),
        table.drop(["label"]),
        table.append_column("more", pa.array(range(40))),
        table.set_column(1, "label", pa.array(range(40), pa.int64())),
        table.set_column(1, "label", pa.array([None] * 40, pa.int16())),
    ):
        with pytest.raises(DataError):
            split_from_table(other)
