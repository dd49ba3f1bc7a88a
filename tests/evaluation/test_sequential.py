"""Evidence of a drop: valid at any look, powerful after a drop, blind to improvements."""

import numpy as np
import pytest
from scipy import integrate, stats

from nnbuild.evaluation.sequential import (
    drop_evidence,
    examples_for_evidence,
    lower_bound,
    win_evidence,
)


@pytest.mark.parametrize("accuracy", [0.6, 0.7, 0.95])
def test_expected_evidence_is_at_most_one(accuracy):
    """Over all results of two steps, for accuracies at and above the floor."""
    steps, floor = (7, 5), 0.6
    weights = [stats.binom.pmf(np.arange(n + 1), n, accuracy) for n in steps]
    mean = sum(
        weights[0][a]
        * weights[1][b]
        * drop_evidence(np.array(steps), np.array([a, b]), floor, np.array([1]))[0]
        for a in range(steps[0] + 1)
        for b in range(steps[1] + 1)
    )
    assert mean <= 1 + 1e-9
    assert accuracy > 0.6 or mean == pytest.approx(1, abs=1e-9)


def test_false_alarms_are_at_most_the_rate():
    draw = np.random.default_rng(0)
    labelled = np.full(60, 40)
    alarms = sum(
        drop_evidence(labelled, draw.binomial(labelled, 0.9), 0.9).max() >= 10 for _ in range(400)
    )
    assert alarms <= 40 + 3 * np.sqrt(400 * 0.1 * 0.9)


def test_late_drop_is_found():
    labelled = np.full(120, 200)
    accuracy = np.where(np.arange(120) < 100, 0.99, 0.95)
    evidence = drop_evidence(labelled, (labelled * accuracy).astype(int), 0.98)
    assert evidence[:100].max() < 20
    assert evidence[110] > 200


def test_evidence_of_an_improvement_is_small():
    labelled = np.full(50, 10_000)
    assert drop_evidence(labelled, labelled, 0.5).max() <= 1
    assert drop_evidence(np.array([10**7]), np.array([0]), 0.5)[0] > 1e200


def test_evidence_ignores_later_steps_and_looks():
    draw = np.random.default_rng(1)
    labelled = draw.integers(1, 50, 20)
    correct = draw.binomial(labelled, 0.8)
    whole = drop_evidence(labelled, correct, 0.85)
    for last in (0, 7, 19):
        part = drop_evidence(labelled[: last + 1], correct[: last + 1], 0.85)
        np.testing.assert_allclose(part, whole[: last + 1])
    some = np.array([3, 19])
    np.testing.assert_allclose(drop_evidence(labelled, correct, 0.85, some), whole[some])


@pytest.mark.parametrize(("correct", "examples"), [(9900, 10_000), (45, 45), (0, 9), (7, 12)])
def test_lower_bound_is_that_of_clopper_and_pearson(correct, examples):
    exact = stats.binomtest(correct, examples, alternative="greater").proportion_ci(0.95).low
    assert lower_bound(correct, examples, 0.05) == pytest.approx(exact, abs=1e-9)


def test_win_evidence_is_a_fair_bet_at_best():
    """Its expectation after the next example is itself at a share of 1/2, and less below that."""
    draw = np.random.default_rng(3)
    for won, lost in [(0, 0), (0, 400), (400, 0), *draw.integers(0, 400, (100, 2)).tolist()]:
        before = win_evidence(won, lost)
        won_next, lost_next = win_evidence(won + 1, lost), win_evidence(won, lost + 1)
        share = draw.uniform(0, 0.5)
        assert share * won_next + (1 - share) * lost_next <= before * (1 + 1e-9)
        assert (won_next + lost_next) / 2 == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (7, 0), (12, 5), (3, 20), (60, 41)])
def test_win_evidence_is_the_mixture(won, lost):
    def ratio(share):
        density = 2 * stats.beta.pdf(share, 5, 5)
        return density * (2 * share) ** won * (2 - 2 * share) ** lost

    expected, _ = integrate.quad(ratio, 0.5, 1)
    assert win_evidence(won, lost) == pytest.approx(expected, rel=1e-7)


def test_win_evidence_at_extremes():
    assert win_evidence(0, 0) == pytest.approx(1)
    assert win_evidence(10**7, 0) > 1e290
    assert 0 < win_evidence(0, 10**7) < 1e-290


@pytest.mark.parametrize(
    ("won", "lost"), [(1, 0), (5, 5), (3, 9), (2, 1), (9, 4), (60, 55), (60, 9)]
)
@pytest.mark.parametrize("others", [0, 1000, 10**6])
def test_needed_examples_reach_the_threshold(won, lost, others):
    examples = won + lost + others
    needed = examples_for_evidence(won, lost, examples, 20.0)
    if won <= lost:
        assert needed is None
    else:
        factor = needed / examples
        assert factor >= 1
        assert win_evidence(round(won * factor), round(lost * factor)) > 10  # counts are rounded
