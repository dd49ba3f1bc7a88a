"""Prediction sets: the rank of the threshold, and the coverage that it guarantees."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.errors import ConfigError
from nnbuild.evaluation.conformal import prediction_sets, probability_threshold

COVERAGES = st.integers(1, 99).map(lambda percent: percent / 100)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), images=st.integers(99, 500), coverage=COVERAGES)
def test_threshold_is_the_corrected_quantile(seed, images, coverage):
    found = np.random.default_rng(seed).beta(5, 1, images).astype(np.float32)
    rank = math.ceil((images + 1) * Fraction(round(coverage * 100), 100))
    expected = 1 - np.sort(1 - found.astype(np.float64))[rank - 1]
    threshold = probability_threshold(found, coverage)
    assert threshold == pytest.approx(expected)
    assert threshold in found
    assert prediction_sets(found, threshold).sum() == rank  # of the images themselves


@settings(deadline=None)
@given(coverage=COVERAGES)
def test_threshold_of_few_images_is_refused(coverage):
    needed = math.ceil(Fraction(round(coverage * 100), round(100 - coverage * 100)))
    probability_threshold(np.full(needed, 0.5, np.float32), coverage)
    with pytest.raises(ConfigError, match=f"at least {needed} ") as caught:
        probability_threshold(np.full(needed - 1, 0.5, np.float32), coverage)
    assert caught.value.setting == "coverage"


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("images", [30, 400])
def test_sets_cover_at_the_stated_rate(images, coverage):
    """Coverage over draws of both sets is the stated one, or up to 1 / (n + 1) more."""
    draw = np.random.default_rng(0)
    covered = [
        prediction_sets(scores[-1], probability_threshold(scores[:-1], coverage))
        for scores in draw.beta(5, 1, (4000, images + 1)).astype(np.float32)
    ]
    margin = 4 * math.sqrt(coverage * (1 - coverage) / 4000)
    assert coverage - margin <= np.mean(covered) <= coverage + 1 / (images + 1) + margin


def test_sets_grow_with_coverage():
    draw = np.random.default_rng(1)
    probabilities = draw.dirichlet(np.ones(5), 200).T.astype(np.float32)
    own = draw.beta(5, 1, 300).astype(np.float32)
    sets = [
        prediction_sets(probabilities, probability_threshold(own, coverage))
        for coverage in (0.1, 0.5, 0.9, 0.99)
    ]
    for smaller, larger in pairwise(sets):
        assert (smaller <= larger).all()
    assert sets[0].sum() < sets[-1].sum()
