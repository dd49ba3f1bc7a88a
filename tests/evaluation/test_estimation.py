"""Thresholds of confidence: the share above one is the accuracy."""

import numpy as np
import pytest

from nnbuild.evaluation import confidence_threshold


@pytest.mark.parametrize("accuracy", [0.0, 0.37, 0.9, 1.0])
def test_share_above_threshold_is_the_accuracy(accuracy):
    draw = np.random.default_rng(4)
    confidence = draw.random(1000)
    correct = np.zeros(1000, bool)
    correct[: round(1000 * accuracy)] = True
    threshold = confidence_threshold(confidence, draw.permutation(correct))
    assert (confidence >= threshold).mean() == pytest.approx(accuracy)
