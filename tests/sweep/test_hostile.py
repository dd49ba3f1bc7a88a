"""Sweeps with bad settings or storage, and sweeps that other processes hold."""

from pathlib import Path

import pytest
from command_line import call, tree_digest

import nnbuild
from nnbuild.config.schema import PRESETS, RunConfig, resolve
from nnbuild.config.sections import WITH_BETAS, TrialTag
from nnbuild.errors import ConfigError, LockedError, StoreError
from nnbuild.store import Store
from nnbuild.sweep import make_sweep, open_sweep, sweep_config, sweep_context
from nnbuild.sweep.study import Study, require_possible

RATES = {"training.learning_rate": [0.001, 0.01]}


@pytest.fixture
def base(small_config) -> RunConfig:
    training = {"epochs": 1, "batch_size": 16, "threads": 2}
    return RunConfig.model_validate(small_config.model_dump() | {"training": training})


def test_sweep_held_elsewhere_is_unchanged(tmp_path, base):
    store = tmp_path / "store"
    with sweep_context(open_sweep(sweep_config({"grid": RATES}, base), store, "mine")):
        before = tree_digest(store)
        with (
            pytest.raises(LockedError, match="sweep mine is held"),
            sweep_context(open_sweep(None, store, "mine")),
        ):
            pass
        assert tree_digest(store) == before


@pytest.mark.usefixtures("prefect_server")  # otherwise the command starts one for this process
def test_trial_is_resumed_by_its_sweep(capfd, tmp_path, base):
    trial = base.model_copy(update={"trial": TrialTag(sweep="mine", number=0)})
    run = nnbuild.open_run(trial, tmp_path)
    with pytest.raises(StoreError, match="nnbuild sweep --id mine"):
        nnbuild.retrain(base, tmp_path, resume=run.run_id)
    told = call(capfd, "run", "--resume", run.run_id, "--store", tmp_path)
    assert told.code == 2
    assert "nnbuild sweep --id mine" in told.err
    assert nnbuild.open_run(trial, tmp_path, resume=run.run_id) == run


@pytest.mark.parametrize("network", sorted(PRESETS))
@pytest.mark.parametrize("optimizer", [*WITH_BETAS, "sgd", "rmsprop"])
def test_preset_takes_every_optimizer(network, optimizer):
    config = {"model": {"name": network}, "training": {"optimizer": optimizer}}
    resolved = resolve(RunConfig.model_validate(config))
    assert resolved.training.optimizer == optimizer
    assert resolve(resolved) == resolved


def test_preset_conflict_raises():
    plateau = {
        "model": {"name": "fast"},
        "training": {"reduce_on_plateau": {"monitor": "val_loss"}},
    }
    with pytest.raises(ConfigError, match="both set the learning rate"):
        resolve(RunConfig.model_validate(plateau))


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """Return the name of a function that fails to build a network."""
    (tmp_path / "networks_of_mine.py").write_text(
        "def broken(input_shape, classes):\n    raise ValueError('mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "networks_of_mine:broken"


def test_trial_that_cannot_begin_fails(tmp_path, base, networks):
    swept = make_sweep(
        sweep_config({"grid": {"model.name": [networks, "lab"]}}, base), tmp_path / "store"
    )
    assert {trial.values["model.name"]: trial.state for trial in swept.trials} == {
        "lab": "finished",
        networks: "failed",
    }
    assert Store(tmp_path / "store").run_ids() == [swept.best]


def test_no_trial_begins_leaves_no_store(tmp_path, base, networks):
    config = sweep_config({"grid": {"model.name": [networks]}}, base)
    with pytest.raises(ConfigError, match=r"no trial could begin.* ValueError: mine"):
        make_sweep(config, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder here that root cannot write to")
def test_unwritable_store_is_named(base):
    with pytest.raises(StoreError, match="write to store /proc/nnbuild"):
        make_sweep(sweep_config({"grid": RATES}, base), "/proc/nnbuild")


@pytest.mark.parametrize("drawn", [0, 1], ids=["nothing-drawn", "one-setting-drawn"])
def test_killed_search_draws_the_same(tmp_path, base, drawn):
    search = {"training.learning_rate": "log:1e-4..1e-1", "model.dropout": "0.0..0.5"}
    config = sweep_config({"search": search, "trials": 2}, base)
    with sweep_context(whole := open_sweep(config, tmp_path / "whole", "drawn")):
        study = Study(whole)
        expected = [study.ask(), study.ask()]
    with sweep_context(killed := open_sweep(config, tmp_path / "killed", "drawn")):
        study = Study(killed)
        study._dimensions = dict([*study._dimensions.items()][:drawn])
        study.ask()
        study = Study(killed)
        assert [*study.begun(), study.ask()] == expected


def test_id_with_settings_raises(capfd, tmp_path):
    told = call(capfd, "sweep", "--id", "mine", "--epochs", 7, "--store", tmp_path)
    assert told.code == 2
    assert "remove the other options" in told.err


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_study_in_memory_raises(tmp_path, base, url):
    config = sweep_config({"search": {"training.epochs": "1..2"}, "storage": url}, base)
    with pytest.raises(ConfigError, match="in memory"):
        require_possible(open_sweep(config, tmp_path))


def test_sweep_run_setting_raises(base):
    with pytest.raises(ConfigError, match=r"unknown key 'sweep\.run'"):
        sweep_config({"grid": RATES, "run": {"training": {"epochs": 2}}}, base)
