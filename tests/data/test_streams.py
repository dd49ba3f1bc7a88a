"""Inputs for scoring: how many rows are read at a time."""

import math

import numpy as np
import pyarrow as pa
import pytest
from score_data import parquet

from nnbuild.data.array_stream import ArrayStream
from nnbuild.data.arrow_labels import class_numbers
from nnbuild.data.formats import open_stream
from nnbuild.data.streams import Batch, StreamOptions, raw_batch_rows, raw_part_rows
from nnbuild.scoring.pieces import read_part, split_shard

SHAPES = [(8, 8, 1), (28, 28, 1), (64, 64, 3), (224, 224, 3), (1024, 1024, 4)]
LARGE, ROWS = (256, 256, 1), 150


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_rows", [1, 100, 4096, 1_000_000])
def test_raw_batches_are_bounded(shape, batch_rows):
    rows = raw_batch_rows(batch_rows, shape)
    assert 1 <= rows <= batch_rows
    assert rows * math.prod(shape) <= 5 * 2**19 or rows <= 32
    assert raw_part_rows(batch_rows, shape) % rows == 0


def array_stream(_folder, images):
    return ArrayStream("array", images, StreamOptions(LARGE))


def parquet_stream(folder, images):
    path = parquet(folder / "in.parquet", images, group=70)
    return open_stream(str(path), StreamOptions(LARGE))


@pytest.mark.parametrize("opened", [array_stream, parquet_stream])
def test_large_raw_images_are_read_in_small_batches(tmp_path, opened):
    images = np.random.default_rng(0).integers(0, 256, (ROWS, *LARGE), np.uint8)
    source = opened(tmp_path, images)
    parts = split_shard(source.chunks(), source.part_rows(4096))
    assert len(parts) > 1  # to share among processes
    found = [each for pieces in reversed(parts) for each in read_part(source, pieces, 4096)]
    batches = [each for each in found if isinstance(each, Batch)]
    assert max(len(each.images) for each in batches) == raw_batch_rows(4096, LARGE) < ROWS
    numbers = np.concatenate([each.example_ids for each in batches])
    assert np.array_equal(np.sort(numbers), np.arange(ROWS))
    assert np.array_equal(np.concatenate([each.images for each in batches]), images[numbers])


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_class_numbers_of_any_integers(name):
    kind = pa.type_for_alias(name)
    highest = np.iinfo(name).max
    values = [0, 1, 7, None, highest] + ([-1] if np.iinfo(name).min < 0 else [])
    expected = [each if each is not None and 0 <= each <= 32_767 else None for each in values]
    for count in (0, 3, 4, len(values)):  # without and with labels that are no class
        numbers = class_numbers(pa.chunked_array([pa.array(values[:count], kind)]), ())
        assert numbers.type == pa.int16()
        assert numbers.to_pylist() == expected[:count]
