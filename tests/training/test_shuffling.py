"""The split into training and validation and the order of an epoch follow from the seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.errors import ConfigError
from nnbuild.training.shuffling import epoch_order, split_rows


@given(st.integers(4, 500), st.floats(0.2, 0.8), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=50)
def test_split_is_seeded_partition(examples, fraction, seed):
    train, validation = split_rows(examples, fraction, seed)
    assert sorted([*train, *validation]) == list(range(examples))
    assert len(validation) == round(examples * fraction)
    again = split_rows(examples, fraction, seed)
    assert np.array_equal(train, again[0])
    assert np.array_equal(validation, again[1])


@given(st.integers(50, 300), st.integers(0, 2**31 - 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_epoch_order_is_permutation(examples, seed, epoch):
    rows = np.arange(examples, dtype=np.int32) * 3
    order = epoch_order(rows, seed, epoch)
    assert np.array_equal(np.sort(order), rows)
    assert np.array_equal(order, epoch_order(rows, seed, epoch))
    assert not np.array_equal(order, epoch_order(rows, seed, epoch + 1))
    assert not np.array_equal(order, epoch_order(rows, seed + 1, epoch))


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_split_empty_part_raises(fraction):
    with pytest.raises(ConfigError, match=r"leaves .* to train on and .* to validate on"):
        split_rows(100, fraction, 0)
