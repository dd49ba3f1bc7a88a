"""Drift: nothing from itself, more from what differs more, and the same in batches as at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nnbuild.drift import BINS, Summary, measure, summarise
from nnbuild.errors import DataError


def a_batch(rows, *, seed=0, shift=0, classes=4):
    random = np.random.default_rng(seed)
    images = np.clip(random.integers(60, 180, (rows, 5, 5, 1)) + shift, 0, 255).astype(np.uint8)
    return images, random.integers(0, classes, rows), random.random(rows)


def of(batch, classes=4):
    return summarise(*batch, classes)


def test_nothing_drifts_from_itself():
    mine = of(a_batch(500))
    assert [(each.psi, each.ks, each.rows) for each in measure(mine, mine)] == [(0.0, 0.0, 500)] * 3


def test_darker_images_drift_in_their_pixels_and_the_more_the_darker():
    reference = of(a_batch(2000))
    by_shift = [{each.of: each for each in measure(reference, of(a_batch(2000, shift=-s)))} for s in (0, 20, 50)]
    assert by_shift[0]["pixels"].ks < by_shift[1]["pixels"].ks <= by_shift[2]["pixels"].ks
    assert by_shift[2]["pixels"].psi > 0.25 > by_shift[2]["predicted"].psi


def test_a_class_that_vanishes_is_seen_and_finite():
    images, predicted, confidence = a_batch(1000)
    found = measure(of((images, predicted, confidence)), of((images, np.zeros_like(predicted), confidence)))
    assert found[0].of == "predicted"
    assert found[0].psi > 1
    assert np.isfinite(found[0].psi)


def test_the_distance_is_scipys_on_the_binned_values():
    one, other = a_batch(800, seed=1)[2], a_batch(600, seed=2)[2] ** 2
    images, predicted, _ = a_batch(800)
    found = measure(of((images, predicted, one)), of((images[:600], predicted[:600], other)))[1]
    expected = stats.ks_2samp(np.floor(one * BINS), np.floor(other * BINS)).statistic
    assert found.ks == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 60), cut=st.integers(0, 60))
def test_batches_add_up_and_are_kept_as_json(rows, cut):
    whole = a_batch(rows)
    cut = min(cut, rows)
    parts = of([each[:cut] for each in whole]) + of([each[cut:] for each in whole])
    assert parts.as_json() == of(whole).as_json()
    assert Summary.from_json(parts.as_json()).as_json() == parts.as_json()


def test_what_cannot_be_compared_is_named():
    with pytest.raises(DataError, match="no rows"):
        measure(of(a_batch(5)), of(a_batch(0)))
    with pytest.raises(DataError, match="5 bins, the reference 4"):
        measure(of(a_batch(5)), of(a_batch(5, classes=5), classes=5))
