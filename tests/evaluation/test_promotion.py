"""The rule of the gate at its boundaries: what equals a threshold, and which of equals is named."""

import numpy as np
import pytest

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation.noninferiority import lower_bound
from nnbuild.evaluation.promotion import Candidate, PairedResult, decide
from nnbuild.evaluation.significance import mcnemar_test_of_counts
from nnbuild.evaluation.slices import Slice

NIGHTS = 365


def candidate(accuracy=0.95, error=0.01):
    metrics = {"accuracy": accuracy, "expected_calibration_error": error}
    return Candidate("challenger", metrics)


def paired(only_challenger, only_champion, *, examples=1000, label=0):
    """Return a comparison by the numbers of images that only one run classifies correctly."""
    counts = (only_challenger, only_champion, examples - only_challenger - only_champion)
    challenger, champion = (
        np.repeat(each, counts) for each in ([True, False, True], [False, True, True])
    )
    return PairedResult("champion", np.full(examples, label, np.int16), challenger, champion)


def joined(*results):
    """Return one comparison on the images of several."""
    labels, challenger, other = (
        np.concatenate([getattr(each, name) for each in results])
        for name in ("labels", "challenger", "other")
    )
    return PairedResult("champion", labels, challenger, other)


def decision(result, *, challenger=None, slices=(), **settings):
    config = GateConfig.model_validate({"max_recall_drop": 1, **settings})
    return decide(challenger or candidate(), result, config, slices=slices)


def above(value):
    return float(np.nextafter(value, 1))


@pytest.mark.parametrize("champion", [None, paired(100, 0)])
@pytest.mark.parametrize("value", [0.1, 0.7, 0.95])
def test_threshold_that_is_met_exactly_passes(champion, value):
    minimum = {"challenger": candidate(accuracy=value), "min_accuracy": value}
    assert decision(champion, **minimum).promote
    assert not decision(champion, **minimum | {"min_accuracy": above(value)}).promote
    maximum = {"challenger": candidate(error=value), "max_calibration_error": value}
    assert decision(champion, **maximum).promote
    below = float(np.nextafter(value, 0))
    assert not decision(champion, **maximum | {"max_calibration_error": below}).promote


def test_bound_at_the_margin_is_promoted():
    bound = lower_bound(20, 25, 1000, 0.05)
    assert decision(paired(20, 25), margin=-bound).promote
    assert not decision(paired(20, 25), margin=float(np.nextafter(-bound, 0))).promote


def test_p_value_at_the_significance_is_not_better():
    p_better = mcnemar_test_of_counts(1000, 0, 2).p_better
    assert not decision(paired(2, 0), rule="better", significance=p_better).promote
    assert decision(paired(2, 0), rule="better", significance=above(p_better)).promote


@pytest.mark.parametrize("won", [10, 12, 16])
def test_anchor_moves_at_a_level_shared_over_a_year(won):
    level = NIGHTS * mcnemar_test_of_counts(1000, 0, won).p_better
    for factor, anchor in ((1 - 1e-9, "champion"), (1 + 1e-9, "challenger")):
        assert decision(paired(won, 0), significance=factor * level).next_anchor == anchor


def test_accuracy_of_champion_is_its_own():
    found = decision(paired(30, 10, examples=100))
    assert found.champion_accuracy == 0.7
    assert found.paired.difference == pytest.approx(0.2)


def test_recall_drop_that_is_allowed_is_never_significant():
    found = decision(paired(0, 200), max_recall_drop=0.2, margin=0.5)
    assert (found.recall_drop, found.recall_p) == (0.2, 1.0)
    assert decision(paired(0, 200), max_recall_drop=0.15, margin=0.5).recall_p < 0.05


@pytest.mark.parametrize("drops", [(0, 20), (20, 0), (20, 40), (40, 20)])
def test_largest_of_equally_significant_recall_drops_is_named(drops):
    """All are allowed, so that every p-value is 1."""
    result = joined(*(paired(0, drop, label=label) for label, drop in enumerate(drops)))
    found = decision(result, max_recall_drop=0.05, margin=0.5)
    assert found.recall_p == 1
    assert found.recall_label == drops.index(max(drops))
    assert found.recall_drop == max(drops) / 1000


def a_slice(value, p_corrected, difference=-0.1):
    return Slice(
        "site",
        value,
        rows=50,
        accuracy=0.8,
        accuracy_low=0.7,
        accuracy_high=0.9,
        calibration_error=0.1,
        compared=50,
        champion_accuracy=0.8 - difference,
        difference=difference,
        p_worse=p_corrected,
        p_corrected=p_corrected,
    )


def test_slice_at_the_significance_is_rejected():
    result = paired(100, 0)
    assert not decision(result, slices=[a_slice("north", 0.05)]).promote
    assert decision(result, slices=[a_slice("north", above(0.05))]).promote


@pytest.mark.parametrize("differences", [(-0.1, -0.3, -0.2), (-0.3, -0.1, -0.2)])
def test_largest_drop_of_equally_significant_slices_is_named(differences):
    slices = [a_slice(f"site {-each}", 0.01, each) for each in differences]
    slices.append(a_slice("less certain", 0.02, -0.9))
    found = decision(paired(100, 0), slices=slices)
    assert found.reason.startswith("its accuracy for site 'site 0.3' is 30.00 points below")
