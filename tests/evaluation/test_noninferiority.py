"""The exact bound of a difference of accuracies: its level on all tables, order and formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import multinomial

from nnbuild.evaluation.noninferiority import (
    _tango_bound,
    examples_needed,
    lower_bound,
    p_value,
    tango_score,
)

LEVEL = 0.05


@st.composite
def tables(draw, most=3000):
    examples = draw(st.integers(1, most))
    won = draw(st.integers(0, examples))
    return won, draw(st.integers(0, examples - won)), examples


def all_tables(examples):
    won, lost = np.divmod(np.arange((examples + 1) ** 2), examples + 1)
    return np.stack([won, lost, examples - won - lost], axis=1)[won + lost <= examples]


def bounds_of(counts):
    return np.array([lower_bound(*map(int, row[:2]), int(row.sum()), LEVEL) for row in counts])


@pytest.mark.parametrize("examples", [1, 2, 3, 4, 6, 9, 14])
def test_bound_keeps_level_on_all_tables(examples):
    counts = all_tables(examples)
    bounds = bounds_of(counts)
    for difference in (-0.3, -0.1, -0.05, -0.005, 0, 0.05, 0.3):
        too_high = bounds > difference
        for share in np.linspace(abs(difference), 1, 40):
            won, lost = (share + difference) / 2, (share - difference) / 2
            chance = multinomial(examples, [won, lost, 1 - share]).pmf(counts[too_high])
            assert chance.sum() <= LEVEL


def test_tango_bound_exceeds_level():
    counts = all_tables(9)
    quantile = -ndtri(LEVEL)
    bounds = np.array([_tango_bound(*map(int, row[:2]), 9, quantile) for row in counts])
    rates = [
        multinomial(9, [(s - 0.1) / 2, (s + 0.1) / 2, 1 - s]).pmf(counts[bounds > -0.1]).sum()
        for s in np.linspace(0.1, 1, 40)
    ]
    assert max(rates) > LEVEL  # so the test of the exact bound can fail


def test_bound_without_discordant_is_exact():
    # The largest loss of which n concordant examples are seen with a probability of 5 %.
    for examples in (10, 300, 10_000):
        bound = lower_bound(0, 0, examples, LEVEL)
        assert (1 + bound) ** examples == pytest.approx(LEVEL * 49 / 50, rel=1e-3)


@given(tables())
@settings(deadline=None, max_examples=60)
def test_bound_agrees_with_p_value(table):
    won, lost, examples = table
    bound = lower_bound(*table, LEVEL)
    assert -1 <= bound <= (won - lost) / examples <= -lower_bound(lost, won, examples, LEVEL) <= 1
    if bound > -1:
        below, above = (
            p_value(*table, difference=bound + step, significance=LEVEL)
            for step in (0, 1e-4 * (1 + (won - lost) / examples - bound))
        )
        assert below <= LEVEL < above


@given(tables(most=400))
@settings(deadline=None, max_examples=40)
def test_bound_grows_with_evidence(table):
    won, lost, examples = table
    bound = lower_bound(*table, LEVEL)
    if won + lost < examples:
        assert lower_bound(won + 1, lost, examples, LEVEL) >= bound - 1e-6
        assert lower_bound(won, lost + 1, examples, LEVEL) <= bound + 1e-6
    assert lower_bound(*table, 0.01) <= bound + 1e-6


@given(tables(), st.floats(-0.9, 0.9))
@settings(deadline=None)
def test_score_variance_is_restricted_maximum(table, difference):
    """Compare with a search for the probability of a lost example that is the most likely."""
    won, lost, examples = table
    rest = examples - won - lost
    lowest, highest = max(0, -difference), (1 - difference) / 2
    lost_share = np.linspace(lowest, highest, 20_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = sum(
            count * np.log(share) if count else 0 * share
            for count, share in (
                (won, lost_share + difference),
                (lost, lost_share),
                (rest, 1 - difference - 2 * lost_share),
            )
        )
    best = lost_share[np.nanargmax(likelihood)]
    variance = examples * (2 * best + difference * (1 - difference))
    excess = won - lost - examples * difference
    score = float(tango_score(won, lost, examples, difference))
    if variance > 0.01 * examples and score:
        assert (excess / score) ** 2 == pytest.approx(variance, rel=0.02)


def test_score_interval_of_fagerland():
    """Compare with Fagerland, Lydersen & Laake 2013 (doi 10.1002/sim.5735): (-0.517, -0.026)."""
    quantile = -ndtri(0.025)
    assert _tango_bound(1, 7, 21, quantile) == pytest.approx(-0.517, abs=5e-4)
    assert -_tango_bound(7, 1, 21, quantile) == pytest.approx(-0.026, abs=5e-4)


@pytest.mark.parametrize(("share", "margin"), [(0.02, 0.01), (0.1, 0.05), (0.01, 0.02)])
def test_needed_examples_give_the_power(share, margin):
    needed = examples_needed(
        round(share * 5000), round(share * 5000), 10_000, margin=margin, significance=LEVEL
    )
    random = np.random.default_rng(0)
    samples = random.multinomial(needed, [share / 2, share / 2, 1 - share], 300)
    passed = [lower_bound(*map(int, row[:2]), needed, LEVEL) >= -margin for row in samples]
    assert np.mean(passed) > 0.75
    assert f"{needed:.1e}".startswith(str(needed).rstrip("0")[0])
