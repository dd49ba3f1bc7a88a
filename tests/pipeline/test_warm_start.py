"""With `training.start`, a fit begins with the weights of the champion."""

import numpy as np
import pytest
from small_data import run_config, write_small_dataset

import nnbuild
from nnbuild import pipeline
from nnbuild.config.schema import resolve
from nnbuild.errors import ConfigError, ContractError
from nnbuild.models import load_model
from nnbuild.pipeline.training import read_model
from nnbuild.store import Store, champion

WARM = {"epochs": 1, "start": "champion"}


def built(config, root):
    run = nnbuild.open_run(config, root)
    return run, pipeline.build_model(run, pipeline.load_data(run))


def test_network_has_the_weights_of_the_champion(store, small_folder):
    run, result = built(run_config(small_folder, training=WARM), store.root)
    run_id = champion.current(store)
    digest = store.manifest(run_id).files[f"runs/{run_id}/model.keras"].sha256
    assert (result.start, result.start_digest) == (run_id, digest)
    theirs = load_model(store.root / "runs" / run_id / "model.keras", digest)
    for one, other in zip(read_model(run, result).get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [each.name for each in (run.folder / "model").iterdir()] == ["uncompiled.keras"]


def test_run_without_start_has_those_of_the_seed(store, small_folder):
    assert built(run_config(small_folder), store.root)[1].start is None


def test_first_run_has_those_of_the_seed(tmp_path, small_folder):
    config = run_config(small_folder, training=WARM)
    run, result = built(config, tmp_path / "store")
    assert result.start is None
    cold, plain = built(run_config(small_folder), tmp_path / "store")
    for one, other in zip(
        read_model(run, result).get_weights(), read_model(cold, plain).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("what", ["network", "images", "classes"])
def test_other_network_is_refused(store, tmp_path, small_folder, what):
    settings = {"model": {"name": "regularized"}} if what == "network" else {}
    source = small_folder
    if what == "images":
        source = write_small_dataset(tmp_path, classes=3, shape=(9, 9, 1), train=60, test=30)
    if what == "classes":
        source = write_small_dataset(tmp_path, classes=4, shape=(8, 8, 1), train=60, test=30)
    with pytest.raises(ConfigError, match=f"has the {what}|has {what}"):
        nnbuild.retrain(run_config(source, training=WARM, **settings), store.root)
    assert not store.unfinished_runs()


def test_damaged_champion_is_refused(store, small_folder):
    path = store.root / "runs" / champion.current(store) / "model.keras"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ContractError, match="was changed"):
        nnbuild.retrain(run_config(small_folder, training=WARM), store.root)
    assert champion.current(store) == Store(store.root).run_ids()[0]


def test_ensemble_is_refused(small_folder):
    with pytest.raises(ConfigError, match="single network"):
        resolve(run_config(small_folder, training=WARM, model={"name": "lab", "ensemble_size": 2}))
