"""`nnbuild run --seeds`: the spread, and what becomes of seeds that fail."""

import math

import numpy as np
import pytest
from command_line import call
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nnbuild.evaluation.significance import mean_confidence_interval
from nnbuild.store import Store, champion


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
@settings(deadline=None, max_examples=50)
def test_interval_equals_scipys(values):
    found = mean_confidence_interval(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert found.standard_deviation == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-6)
    error = stats.sem(values)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)
    assert found.low <= found.mean <= found.high


def test_one_value_has_no_spread():
    assert mean_confidence_interval([3.0]) == (1, 3.0, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        mean_confidence_interval([])


@pytest.fixture
def arguments(small_folder, tmp_path):
    given = ["run", "--dataset", small_folder, "--model", "lab", "--epochs", 1, "--batch-size", 16]
    return [*given, "--set", "training.threads=2", "--seed", 4, "--store", tmp_path / "store"]


def test_seeds_are_runs_and_one_is_gated(capfd, arguments, tmp_path, prefect_server):
    found = call(capfd, *arguments, "--seeds", 2, "--json")
    assert found.code == 0, found.err
    told = found.json
    store = Store(tmp_path / "store")
    runs = store.read_table("runs").to_pylist()
    assert [run["run_id"] for run in runs] == [row["run_id"] for row in told["runs"]]
    assert [run["seed"] for run in runs] == [4, 5]
    accuracies = [run["test_accuracy"] for run in runs]
    statistics = told["statistics"]["test_accuracy"]
    assert statistics["mean"] == pytest.approx(math.fsum(accuracies) / 2)
    assert statistics["standard_deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    assert set(told["statistics"]) == {"test_accuracy", "test_loss", "fit_seconds", "seconds"}
    assert [row["reason"] for row in store.read_table("decisions").to_pylist()][
        1
    ] == "the gate is off"
    assert champion.current(store) == runs[0]["run_id"]


def test_failed_seed_is_recorded(capfd, arguments, tmp_path, prefect_server, monkeypatch):
    from nnbuild.errors import DivergedError
    from nnbuild.training import trainer

    require = trainer._require_finite
    asked = []

    def diverges_once(metrics, *rest):
        asked.append(metrics)
        if len(asked) == 1:
            raise DivergedError("the loss became nan in epoch 1")
        require(metrics, *rest)

    monkeypatch.setattr(trainer, "_require_finite", diverges_once)
    found = call(capfd, *arguments, "--seeds", 2)
    assert found.code == 1
    assert "seed 4 failed: the loss became nan" in found.err
    assert "standard_deviation" in found.out
    store = Store(tmp_path / "store")
    runs = store.read_table("runs").to_pylist()
    assert [run["status"] for run in runs] == ["failed", "succeeded"]
    assert champion.current(store) == runs[1]["run_id"]


def test_stop_names_the_seeds_that_are_left(capfd, arguments, prefect_server, monkeypatch):
    from flows.cli import seeds
    from nnbuild.errors import Interrupted

    def stop(*_arguments):
        raise Interrupted("stopped by signal 2", 2)

    monkeypatch.setattr(seeds, "run_flow", stop)
    found = call(capfd, *arguments, "--seeds", 3)
    assert found.code == 130
    assert "--seed 5 --seeds 2 --set gate.enabled=false" in found.err
