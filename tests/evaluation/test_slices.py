"""Accuracy by slice: the same figures as on the images of a slice alone, and the gate's test."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation import calibration_error, wilson_interval
from nnbuild.evaluation.noninferiority import p_value
from nnbuild.evaluation.promotion import Candidate, PairedResult, decide
from nnbuild.evaluation.significance import holm_correction
from nnbuild.evaluation.slices import MAX_VALUES, Compared, measure_slices

IMAGES = st.lists(
    st.tuples(
        st.sampled_from(["north", "south", "", None]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.floats(0.0625, 1, width=32),
    ),
    min_size=1,
    max_size=60,
)
GATE = GateConfig(margin=0.01, slices=("site",))


def measured(images, config=GATE, **columns):
    sites, correct, champion, rows, confidence = (
        np.array(each) for each in zip(*images, strict=True)
    )
    kept = pa.table({"site": pa.array(list(sites), pa.string()), **columns})
    compared = Compared(rows, correct[rows], champion[rows])
    found = measure_slices(kept, correct, confidence.astype(np.float32), config, compared)
    return found, (sites, correct, champion, rows, confidence.astype(np.float32))


@given(IMAGES)
@settings(deadline=None, max_examples=60)
def test_slices_equal_the_images_alone(images):
    found, (sites, correct, champion, rows, confidence) = measured(images)
    assert {each.value for each in found} == set(sites)
    assert sum(each.rows for each in found) == len(images)
    for each in found:
        mine = np.array([site == each.value for site in sites])
        both = mine & rows
        assert each.accuracy == pytest.approx(correct[mine].mean())
        assert (each.accuracy_low, each.accuracy_high) == wilson_interval(each.accuracy, each.rows)
        assert each.compared == both.sum()
        # Two classes, of which the predicted one has the confidence if it is above a half.
        if (confidence[mine] > 0.5).all():
            probabilities = np.stack([confidence[mine], 1 - confidence[mine]], axis=1)
            error = calibration_error(probabilities, np.where(correct[mine], 0, 1))
            assert each.calibration_error == pytest.approx(error, abs=1e-6)
        if both.any():
            assert each.champion_accuracy == pytest.approx(champion[both].mean())
            gap = correct[both].mean() - champion[both].mean()
            assert each.difference == pytest.approx(gap)
        else:
            assert (each.champion_accuracy, each.p_worse, each.p_corrected) == (None, None, None)
    tested = [each for each in found if each.p_worse is not None]
    assert [each.p_corrected for each in tested] == holm_correction(
        [each.p_worse for each in tested]
    )


def paired(lost, won, both=200):
    """Return correct predictions of challenger and champion with so many discordant images."""
    champion = np.array([True] * lost + [False] * won + [True] * both)
    challenger = np.array([False] * lost + [True] * won + [True] * both)
    return challenger, champion


def decision(config, lost, won):
    challenger, champion = (
        np.concatenate(each) for each in zip(paired(lost, won), paired(0, lost - won), strict=True)
    )
    sites = ["small"] * (200 + lost + won) + ["large"] * (len(champion) - 200 - lost - won)
    kept = pa.table({"site": sites})
    everything = np.ones(len(champion), bool)
    slices = measure_slices(
        kept,
        challenger,
        np.ones(len(champion), np.float32),
        config,
        Compared(everything, challenger, champion),
    )
    labels = np.zeros(len(champion), np.int16)
    metrics = {"accuracy": float(challenger.mean()), "expected_calibration_error": 0.0}
    return decide(
        Candidate("new", metrics),
        PairedResult("old", labels, challenger, champion),
        config,
        slices=[each for each in slices if each.column_name in config.slices],
    ), slices


def test_gate_names_the_slice_that_is_worse():
    config = GateConfig(margin=0.05, slices=("site",))
    found, slices = decision(config, lost=40, won=2)
    assert found.outcome == "rejected"
    assert "its accuracy for site 'small' is 15.70 points below" in found.reason
    worst = min(slices, key=lambda each: each.p_corrected)
    assert worst.value == "small"
    level = config.significance / 2
    exact = p_value(40, 2, 242, difference=0.05, significance=level)
    assert worst.p_worse == exact
    assert worst.p_corrected == 2 * exact


def test_gate_without_slices_ignores_them():
    assert decision(GateConfig(margin=0.05), lost=40, won=2)[0].promote


def test_gate_allowed_loss_in_slice_passes():
    config = GateConfig(margin=0.05, slices=("site",))
    assert decision(config, lost=8, won=2)[0].promote


def test_other_columns_do_not_weaken_the_gate():
    images = [("north", False, True, True, 0.9)] * 9 + [("south", True, True, True, 0.9)] * 9
    cameras = pa.array([str(number) for number in range(18)])
    alone, _ = measured(images)
    beside, _ = measured(images, camera=cameras)
    assert [each for each in beside if each.column_name == "site"] == alone


def test_column_of_many_values_has_no_slices():
    images = [("north", True, True, True, 0.9)] * (MAX_VALUES + 1)
    numbers = pa.array([str(number) for number in range(len(images))])
    found, _ = measured(images, serial=numbers)
    assert {each.column_name for each in found} == {"site"}


def test_column_of_most_values_has_slices():
    images = [("north", True, True, True, 0.9)] * (MAX_VALUES + 2)
    numbers = [str(number % MAX_VALUES) for number in range(len(images))]
    found, _ = measured(images, batch=pa.array(numbers))
    assert sum(each.column_name == "batch" for each in found) == MAX_VALUES


def test_images_without_value_are_last():
    images = [(site, True, True, True, 0.9) for site in (None, "z", "", "a", None)]
    found, _ = measured(images, camera=pa.array([None, "2", "1", None, "2"]))
    assert [(each.column_name, each.value) for each in found] == [
        *(("site", value) for value in ("", "a", "z", None)),
        *(("camera", value) for value in ("1", "2", None)),
    ]


def test_drop_of_the_margin_is_not_worse():
    images = [("north", row >= 5, True, True, 0.9) for row in range(100)]
    for margin, p_worse in ((0.05, 1.0), (0.049, pytest.approx(0.5, abs=0.3))):
        (found,), _ = measured(images, GateConfig(margin=margin, slices=("site",)))
        assert (found.difference, found.p_worse) == (-0.05, p_worse)
        assert (found.p_worse == 1) == (margin == 0.05)
