"""Test temperature scaling: it recovers known temperatures and maximises the likelihood."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.evaluation import calibration_error, fit_temperature
from nnbuild.evaluation.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from nnbuild.logits import log_softmax, softmax


def drawn(seed, classes=5, rows=4000):
    """Logits, and labels that are drawn from their softmax: calibrated by construction."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (rows, classes))
    gumbel = random.gumbel(size=logits.shape)
    return logits, (logits + gumbel).argmax(axis=1)


def likelihood(logits, labels, temperature):
    return log_softmax(logits, temperature=temperature)[np.arange(len(labels)), labels].mean()


@given(seed=st.integers(0, 1000), factor=st.floats(0.2, 8))
@settings(deadline=None, max_examples=15)
def test_temperature_recovers_factor(seed, factor):
    logits, labels = drawn(seed)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.1)


@given(seed=st.integers(0, 1000), spread=st.floats(0.1, 30))
@settings(deadline=None, max_examples=15)
def test_temperature_maximises_likelihood(seed, spread):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(0, spread, (200, 4)), random.integers(0, 4, 200)
    best = fit_temperature(logits, labels)
    found = likelihood(logits, labels, best)
    for other in np.clip([1.0, 0.9 * best, 1.1 * best], MIN_TEMPERATURE, MAX_TEMPERATURE):
        assert found >= likelihood(logits, labels, other) - 1e-6


def test_temperature_fixes_overconfidence():
    logits, labels = drawn(0, rows=20_000)
    temperature = fit_temperature(3 * logits, labels)
    before, after = (
        calibration_error(softmax(3 * logits, temperature=t), labels) for t in (1.0, temperature)
    )
    assert after < before / 5


@pytest.mark.parametrize("right", [True, False])
def test_temperature_degenerate_is_bounded(right):
    logits = np.eye(4)[np.arange(40) % 4] * 5
    labels = (np.arange(40) + (not right)) % 4
    assert 0.04 < fit_temperature(logits, labels) < 20.1


def test_run_stores_calibration(small_run):
    store, (run_id,) = small_run, small_run.run_ids()
    calibrated = store.manifest(run_id).steps.calibrate_model
    table = store.read_table("calibration", run_id).to_pandas()
    assert set(table.temperature) == {1.0, calibrated.temperature}
    assert set(table.subset) == {"validation", "test"}
    for (subset, temperature), bins in table.groupby(["subset", "temperature"]):
        gap = (bins["count"] * (bins.mean_confidence - bins.accuracy).abs()).sum() / bins[
            "count"
        ].sum()
        told = (calibrated.before if temperature == 1 else calibrated.after)[subset]
        assert told == pytest.approx(gap) == pytest.approx(bins.expected_calibration_error.iloc[0])
    evaluated = store.manifest(run_id).steps.evaluate_model.metrics
    assert evaluated["expected_calibration_error"] == pytest.approx(
        calibrated.before["test"], abs=1e-5
    )
