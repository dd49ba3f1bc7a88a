"""Test drift: zero for the same data, larger for larger differences, with few false alarms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nnbuild.errors import DataError
from nnbuild.evaluation.drift import (
    BINS,
    MEASURES,
    Summary,
    compare,
    energy_edges,
    summarise,
)


def a_batch(rows, *, seed=0, shift=0, classes=4):
    random = np.random.default_rng(seed)
    images = (
        random.integers(60, 180, (rows, 5, 5, 1))
        + random.integers(-40, 40, (rows, 1, 1, 1))
        + shift
    )
    images = np.clip(images, 0, 255).astype(np.uint8)
    return images, random.integers(0, classes, rows), random.random(rows).astype(np.float32)


EDGES = np.linspace(0, 1, 20)


def of(batch, classes=4):
    energies = batch[2] if len(batch) == 3 else None
    return summarise(*batch, classes, energies=energies, edges=EDGES)


def held(reference, scored, *, psi=0.2, ks=0.2):
    return {
        (each.measure, each.statistic): each for each in compare(reference, scored, psi=psi, ks=ks)
    }


def test_drift_of_same_data_is_zero():
    mine = of(a_batch(500))
    found = held(mine, mine)
    assert set(found) == {
        (measure, statistic) for measure in MEASURES for statistic in ("psi", "ks")
    }
    assert {
        (each.value, each.exceeded, each.rows, each.reference_rows) for each in found.values()
    } == {(0.0, False, 500, 500)}


def test_drift_grows_with_darkness():
    reference = of(a_batch(2000))
    by_shift = [held(reference, of(a_batch(2000, shift=-shift, seed=1))) for shift in (0, 20, 40)]
    for measure in ("brightness", "ink"):
        for statistic in ("psi", "ks"):
            values = [each[measure, statistic].value for each in by_shift]
            assert values == sorted(values)
            assert [each[measure, statistic].exceeded for each in by_shift] == [
                False,
                True,
                True,
            ], (measure, values)
    assert not any(by_shift[2]["predicted", statistic].exceeded for statistic in ("psi", "ks"))


def test_drift_missing_class_is_finite():
    images, predicted, confidence = a_batch(1000)
    found = held(
        of((images, predicted, confidence)), of((images, np.zeros_like(predicted), confidence))
    )
    assert found["predicted", "psi"].exceeded
    assert np.isfinite(found["predicted", "psi"].value)


def test_ks_equals_scipy():
    one, other = a_batch(800, seed=1)[2], a_batch(600, seed=2)[2] ** 2
    images, predicted, _ = a_batch(800)
    found = held(of((images, predicted, one)), of((images[:600], predicted[:600], other)))[
        "confidence", "ks"
    ]
    expected = stats.ks_2samp(np.floor(one * BINS), np.floor(other * BINS)).statistic
    assert found.value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("rows", "others"), [(20, 50), (100, 400), (1000, 5000)])
def test_drift_false_alarm_rate(rows, others):
    """At thresholds that are next to nothing, so that only chance is left to be told from drift."""
    passed = dict.fromkeys(
        [(measure, statistic) for measure in MEASURES for statistic in ("psi", "ks")], 0
    )
    for seed in range(200):
        random = np.random.default_rng(seed)
        counts = [random.multinomial(size, np.full(BINS, 1 / BINS)) for size in (others, rows)]
        classes = [random.multinomial(size, [0.4, 0.3, 0.2, 0.1]) for size in (others, rows)]
        both = [
            Summary(mix, each, each, each, each) for mix, each in zip(classes, counts, strict=True)
        ]
        for key, each in held(*both, psi=1e-9, ks=1e-9).items():
            passed[key] += each.exceeded
    assert max(passed.values()) <= 4, (
        passed
    )  # 0.2 are expected; more than 4 of 200 has a chance of one in 10⁵


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 100), rows=st.integers(1, 3000), scale=st.sampled_from([1e-6, 1, 1e4]))
def test_energy_edges_are_quantiles(seed, rows, scale):
    energies = (scale * np.random.default_rng(seed).normal(-20, 3, rows)).astype(np.float32)
    edges = energy_edges(energies)
    counts = np.bincount(np.searchsorted(edges, energies), minlength=len(edges) + 1)
    assert len(counts) <= BINS
    assert counts.sum() == rows
    assert (np.diff(edges) > 0).all()
    assert counts.max() <= max(rows * 0.04, 4)


@pytest.mark.parametrize("value", [-17.25, 0.0, 3e4])
def test_energy_edges_ignore_the_engine(value):
    """Equal images have equal energies, up to what the engines differ by."""
    energies = value * (1 + 1e-6 * np.random.default_rng(0).normal(size=500))
    assert energy_edges(energies.astype(np.float32)).shape == (0,)


def test_drift_without_energy_is_left_out():
    mine = of(a_batch(500))
    older = Summary(mine.predicted, mine.confidence, mine.brightness, mine.ink)
    for pair in ((mine, older), (older, mine), (older, older)):
        assert {measure for measure, _ in held(*pair)} == set(MEASURES) - {"energy"}
    assert Summary.from_json(older.as_json()).energy is None


def test_drift_many_rows_keep_thresholds():
    mine = of(a_batch(20_000))
    assert {
        (each.statistic, each.threshold) for each in held(mine, mine, psi=0.1, ks=0.3).values()
    } == {
        ("psi", 0.1),
        ("ks", 0.3),
    }


@pytest.mark.parametrize(("rows", "others"), [(20, 50), (300, 70), (1000, 5000)])
@pytest.mark.parametrize("classes", [2, 4, 10])
def test_drift_thresholds_of_few_rows(rows, others, classes):
    """Chance exceeds them once in a thousand times."""
    mine, theirs = (of(a_batch(size, classes=classes), classes) for size in (others, rows))
    both = 1 / rows + 1 / others
    for (measure, statistic), each in held(mine, theirs, psi=1e-9, ks=1e-9).items():
        if statistic == "ks":
            assert each.threshold == pytest.approx(np.sqrt(np.log(2 / 0.001) / 2 * both))
        else:
            freedom = classes - 1 if measure == "predicted" else 9  # ten groups
            expected = stats.chi2.ppf(0.999, freedom) * both
            assert each.threshold == pytest.approx(expected, rel=0.04)  # an approximation


def test_drift_at_the_threshold_is_not_exceeded():
    mine, theirs = of(a_batch(20_000)), of(a_batch(20_000, seed=1, shift=-30))
    found = held(mine, theirs)["brightness", "ks"]
    assert found.value > 0.2
    exact = held(mine, theirs, ks=found.value)["brightness", "ks"]
    assert (exact.threshold, exact.exceeded) == (found.value, False)
    assert held(mine, theirs, ks=found.value - 1e-9)["brightness", "ks"].exceeded


@pytest.mark.parametrize("pixel", [0, 10, 51, 100, 200, 255])
def test_mean_brightness_is_within_half_a_bin(pixel):
    images = np.full((7, 5, 5, 1), pixel, np.uint8)
    found = of((images, np.zeros(7, np.int64), np.ones(7, np.float32))).mean_brightness()
    assert abs(found - pixel) <= 255 / BINS / 2 + 1e-9


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 60), cut=st.integers(0, 60))
def test_summary_adds_and_round_trips(rows, cut):
    whole = a_batch(rows)
    cut = min(cut, rows)
    parts = of([each[:cut] for each in whole]) + of([each[cut:] for each in whole])
    assert parts.as_json() == of(whole).as_json()
    assert Summary.from_json(parts.as_json()).as_json() == parts.as_json()


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 20), side=st.integers(1, 9), every=st.integers(1, 5))
def test_summary_counts_pixels(rows, side, every):
    images = np.random.default_rng(rows).integers(0, 256, (rows, side, side, 3), np.uint8)
    found = summarise(images[::every], np.zeros(rows, np.int16), np.ones(rows, np.float32), 2)
    flat = images[::every].reshape(-1, side * side * 3)
    for counts, values in (
        (found.brightness, flat.mean(axis=1) / 255),
        (found.ink, (flat >= 128).mean(axis=1)),
    ):
        bins = np.minimum(np.floor(values * BINS + 1e-9).astype(int), BINS - 1)
        assert np.array_equal(counts, np.bincount(bins, minlength=BINS))
    assert found.predicted.sum() == found.confidence.sum() == rows


def test_drift_incomparable_is_named():
    with pytest.raises(DataError, match="no rows"):
        held(of(a_batch(5)), of(a_batch(0)))
    with pytest.raises(DataError, match="5 bins, the reference 4"):
        held(of(a_batch(5)), of(a_batch(5, classes=5), classes=5))
    with pytest.raises(DataError, match="no counts"):
        Summary.from_json({"predicted": [1]})
