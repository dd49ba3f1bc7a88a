"""Test the softmax against arithmetic with 400 digits."""

import ml_dtypes
import mpmath
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import logsumexp

from nnbuild.errors import ContractError
from nnbuild.logits import energy, log_softmax, predict, softmax
from nnbuild.logits.softmax import require_finite

SMALL = [np.float16, ml_dtypes.bfloat16, np.float32]
ROWS = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=12)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 30), st.integers(2, 9)),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    st.floats(0.1, 10),
)
@settings(deadline=None, max_examples=40)
def test_predict_equals_softmax(logits, temperature):
    probabilities, predicted, log_prob = predict(logits, temperature=temperature)
    each = np.arange(len(logits))
    assert np.array_equal(predicted, logits.argmax(axis=1))
    np.testing.assert_array_max_ulp(
        probabilities.T.copy(), softmax(logits, temperature=temperature), maxulp=1
    )
    np.testing.assert_array_max_ulp(
        log_prob,
        log_softmax(logits, temperature=temperature)[each, predicted],
        maxulp=1,
        dtype=np.float32,
    )


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(0, 30), st.integers(1, 9)),
        elements=st.floats(-(2.0**127), 2.0**127, width=32),
    ),
    st.floats(-50, 50),
)
@settings(deadline=None, max_examples=60)
def test_energy_equals_scipy(logits, shift):
    found = energy(logits)
    assert (found.dtype, found.shape) == (np.float32, logits.shape[:1])
    expected = -logsumexp(logits.astype(np.float64), axis=1)
    np.testing.assert_array_max_ulp(found, expected.astype(np.float32), maxulp=1)
    wide = np.clip(logits.astype(np.float64), -1e4, 1e4)
    np.testing.assert_allclose(energy(wide + shift), energy(wide) - shift, atol=1e-9)
    for row in range(min(len(logits), 2)):
        assert energy(logits[row]) == found[row]


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_energy_of_small_floats_is_float32(kind):
    logits = np.random.default_rng(0).normal(0, 5, (20_000, 10)).astype(kind)
    expected = -logsumexp(logits.astype(np.float64), axis=1)
    np.testing.assert_array_max_ulp(energy(logits), expected.astype(np.float32), maxulp=1)


def test_energy_of_nan_is_refused():
    logits = np.zeros((4, 3), np.float32)
    logits[2, 1] = np.nan
    with pytest.raises(ContractError, match="rows 12"):
        energy(logits, first_row=10)


def exact(row, temperature=1.0):
    """Probabilities and their logarithms, exact for what a float can tell."""
    with mpmath.workdps(400):  # a logarithm of 1 - 1e-300 needs them
        scaled = [mpmath.mpf(float(value)) / mpmath.mpf(temperature) for value in row]
        log_sum = max(scaled) + mpmath.log(
            mpmath.fsum(mpmath.exp(value - max(scaled)) for value in scaled)
        )
        logs = [value - log_sum for value in scaled]
        return [mpmath.exp(value) for value in logs], logs


def ulps(found, wanted):
    """Return the distance to the exact value in units in the last place, also if subnormal."""
    kind = found.dtype
    with mpmath.workdps(60):
        nearest = np.asarray(float(wanted), np.float64).astype(kind)
        unit = abs(
            float(np.spacing(np.abs(nearest.astype(np.float32) if kind.itemsize == 2 else nearest)))
        )
        if kind.itemsize == 2:
            information = ml_dtypes.finfo(kind)
            exponent = np.floor(
                np.log2(max(abs(float(wanted)), float(information.smallest_normal)))
            )
            unit = float(2.0 ** (exponent - information.nmant))
        return abs(mpmath.mpf(float(found)) - wanted) / unit


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: np.dtype(kind).name)
@given(values=ROWS)
@settings(deadline=None, max_examples=40)
def test_softmax_small_types_within_one_ulp(kind, values):
    row = np.array(values).astype(kind)
    probabilities, logs = exact(row)
    for found, wanted in ((softmax(row), probabilities), (log_softmax(row), logs)):
        assert found.dtype == kind
        assert all(ulps(one, other) <= 1 for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: np.dtype(kind).name)
@pytest.mark.parametrize(
    "values",
    [
        [0, 0],
        [1e4, -1e4],
        [20, 0, -20],
        [1e4, 1e4 - 8],
        [0, -87.5, -103],
        [5, 5, 5, -5],
        [0, -9, -16.5, -17],
    ],
)
def test_softmax_extremes_within_one_ulp(kind, values):
    row = np.array(values).astype(kind)
    probabilities, logs = exact(row)
    assert all(
        ulps(one, other) <= 1 for one, other in zip(softmax(row), probabilities, strict=True)
    )
    assert all(ulps(one, other) <= 1 for one, other in zip(log_softmax(row), logs, strict=True))


@given(values=ROWS, temperature=st.floats(0.2, 5))
@settings(deadline=None, max_examples=40)
def test_softmax_float64_within_1e11(values, temperature):
    row = np.array(values)
    probabilities, logs = exact(row, temperature)
    smallest = np.finfo(np.float64).smallest_normal
    for found, wanted in (
        (softmax(row, temperature=temperature), probabilities),
        (log_softmax(row, temperature=temperature), logs),
    ):
        for one, other in zip(found, wanted, strict=True):
            assert abs(mpmath.mpf(float(one)) - other) <= max(1e-11 * abs(other), smallest)


def test_softmax_row_independent_of_batch():
    random = np.random.default_rng(0)
    logits = random.normal(0, 30, (1_000_000, 10)).astype(np.float32)
    probabilities, logs = softmax(logits), log_softmax(logits)
    for row in (0, 16_383, 16_384, 999_999):
        assert np.array_equal(probabilities[row], softmax(logits[row]))
        assert np.array_equal(logs[row], log_softmax(logits[row : row + 1])[0])
    assert np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() < 1e-6
    assert np.isfinite(logs).all()
    assert np.array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))


def test_log_softmax_tiny_is_finite():
    row = np.array([0, -500], np.float32)
    assert softmax(row)[1] == 0
    assert log_softmax(row)[1] == -500


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9), st.integers(-50, 50))
@settings(deadline=None, max_examples=40)
def test_softmax_is_shift_invariant(values, constant):
    row = np.array(values, np.float32)
    assert np.array_equal(softmax(row), softmax(row + constant))
    assert np.array_equal(log_softmax(row), log_softmax(row + constant))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_softmax_nan_rows_are_named(bad):
    logits = np.zeros((20_000, 3), np.float32)
    logits[[7, 19_999], 1] = bad
    with pytest.raises(
        ContractError, match=r"2 rows of logits are NaN or infinite.*rows 107, |1 rows .*rows 107"
    ):
        softmax(logits, first_row=100)


@pytest.mark.parametrize("function", [softmax, log_softmax, predict, energy])
@pytest.mark.parametrize("row", [7, 19_999])
def test_nan_row_is_named_by_its_number(function, row):
    """Rows are computed in blocks, and the logits are a batch of a larger set."""
    logits = np.zeros((20_000, 3), np.float32)
    logits[row, 1] = np.nan
    with pytest.raises(ContractError, match=f"^1 rows of logits .* numbers: rows {100 + row};"):
        function(logits, first_row=100)


@pytest.mark.parametrize("ids", [np.array([7, 9000002]), pa.array(["a", "9000002"])])
def test_rows_with_ids_are_named_by_them(ids):
    logits = np.array([[0.0, 1.0], [np.nan, 1.0]])
    with pytest.raises(ContractError, match=r"^1 rows .*: example IDs 9000002;"):
        require_finite(logits, example_ids=ids)


@pytest.mark.parametrize(
    "logits",
    [np.zeros((2, 3), int), np.zeros((2, 3, 4)), np.zeros((3, 0)), np.zeros(()), np.array(["a"])],
)
def test_softmax_other_input_is_refused(logits):
    with pytest.raises(ContractError, match=r"expected logits of shape \(n, classes\)"):
        softmax(logits)


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_softmax_bad_temperature_is_refused(temperature):
    with pytest.raises(ContractError, match="temperature"):
        softmax(np.zeros(3), temperature=temperature)
