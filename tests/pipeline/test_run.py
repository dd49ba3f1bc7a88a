"""The whole pipeline without Prefect: committed, failed and resumed runs."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from command_line import tree_digest
from data_files import separable, write_idx, write_npz
from run_values import TABLES, values

import nnbuild
from nnbuild import pipeline
from nnbuild.config.schema import RunConfig
from nnbuild.errors import CheckError, ContractError, DivergedError, LockedError, StoreError
from nnbuild.models import load_model
from nnbuild.store import Store, champion, locks, schemas
from nnbuild.store.filesystem import file_digest


def with_changes(config: RunConfig, changes: dict) -> RunConfig:
    return RunConfig.model_validate(config.model_dump() | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_folder):
    """Return a store with three runs: two with the same seed, and one with another."""
    root = tmp_path_factory.mktemp("runs") / "store"
    config = {
        "dataset": {"name": str(small_folder)},
        "model": {"name": "convnet"},
        "training": {"epochs": 2, "threads": 2},
    }
    found = [
        nnbuild.retrain(RunConfig.model_validate(config | {"seed": seed}), root)
        for seed in (7, 7, 8)
    ]
    return Store(root), [each.run_id for each in found]


def test_seed_decides_bytes(finished):
    store, (one, again, other) = finished
    assert values(store, one) == values(store, again)
    assert values(store, one)["model"] != values(store, other)["model"]
    assert values(store, one)["history"] != values(store, other)["history"]


def test_run_commits_all_tables(finished):
    store, run_ids = finished
    assert store.run_ids() == sorted(run_ids)
    assert store.unfinished_runs() == []
    assert list((store.root / "staging").iterdir()) == []
    assert {path.name for path in (store.root / "tables").iterdir()} == TABLES | {"champions"}
    for name in TABLES:
        schema = schemas.predictions(3) if name == "predictions" else schemas.STATIC_SCHEMAS[name]
        for run_id in run_ids:
            table = store.read_table(name, run_id)
            assert table.column_names == ["run_id", *schema.names]


def test_manifest_describes_run(finished):
    store, run_ids = finished
    manifest = store.manifest(run_ids[0])
    for name, kept in manifest.files.items():
        path = store.root / name
        assert (file_digest(path), path.stat().st_size) == (kept.sha256, kept.bytes)
    assert {
        "config",
        "steps",
        "seconds",
        "code_version",
        "packages",
        "machine",
        "row",
    } <= manifest.to_json().keys()
    data = manifest.steps.load_data
    assert (store.root / "datasets" / data.name / data.digest / "train.parquet").exists()
    assert manifest.steps.check_data.checks


def test_predictions_match_evaluation(finished):
    store, run_ids = finished
    row = store.read_table("runs", run_ids[0]).to_pylist()[0]
    frame = store.read_table("predictions", run_ids[0]).to_pandas()
    assert (frame.label == frame.predicted).mean() == row["test_accuracy"]
    confusion = store.read_table("confusion", run_ids[0]).to_pandas()
    assert confusion["count"].sum() == len(frame)
    assert (
        confusion[confusion.label == confusion.predicted]["count"].sum()
        == (frame.label == frame.predicted).sum()
    )


def test_load_model_verifies_digest(finished):
    store, run_ids = finished
    path = store.root / "runs" / run_ids[0] / "model.keras"
    assert load_model(path, file_digest(path)).output_shape == (None, 3)
    with pytest.raises(ContractError, match="sha256"):
        load_model(path, "0" * 64)


def test_run_colour_images_succeeds(tmp_path, small_config):
    data = write_npz(tmp_path / "colour.npz", separable(shape=(9, 7, 3), classes=5), grey=False)
    config = with_changes(small_config, {"dataset": {"name": str(data)}, "model": {"name": "fast"}})
    committed = nnbuild.retrain(config, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.read_table("predictions").column_names[-1] == "prob_4"
    assert "in colour" not in committed.manifest
    assert store.manifest(committed.run_id).steps.load_data.image_shape == (9, 7, 3)


def test_run_all_settings_succeeds(tmp_path, small_config):
    training = small_config.training.model_dump() | {
        "label_encoding": "one-hot",
        "metrics": ("accuracy", "top_2_accuracy", "crossentropy"),
        "early_stopping": {"patience": 1},
        "reduce_on_plateau": {"patience": 0},
        "restore_best_weights": "val_loss",
        "validation_freq": 2,
        "augmentation": "shift",
        "tensorboard": True,
    }
    committed = nnbuild.retrain(with_changes(small_config, {"training": training}), tmp_path)
    metrics = set(Store(tmp_path).read_table("history", committed.run_id)["metric"].to_pylist())
    assert {
        "loss",
        "val_crossentropy",
        "top_2_accuracy",
        "learning_rate",
        "epoch_seconds",
    } <= metrics
    assert list((tmp_path / "runs" / committed.run_id / "tensorboard").rglob("events.out.*"))


def test_diverged_run_keeps_history(tmp_path, small_config):
    training = small_config.training.model_dump() | {
        "epochs": 50,
        "optimizer": "sgd",
        "learning_rate": 100,
    }
    config = with_changes(
        small_config, {"training": training, "model": {"name": "regularized", "l2": 10}}
    )
    with pytest.raises(DivergedError):
        nnbuild.retrain(config, tmp_path)
    row = Store(tmp_path).read_table("runs").to_pylist()[0]
    assert row["status"] == "failed"
    assert "the loss became" in row["error"]
    assert row["test_accuracy"] is None
    assert len(Store(tmp_path).read_table("history")["epoch"].unique()) == row["epochs"]


def test_failed_checks_commit_failed_run(tmp_path, small_config):
    arrays = separable(shape=(8, 8, 1), classes=3)
    arrays.train_images[:100] = 0
    data = write_npz(tmp_path / "blank.npz", arrays)
    with pytest.raises(CheckError, match=r"\d"):
        nnbuild.retrain(
            with_changes(small_config, {"dataset": {"name": str(data)}}), tmp_path / "store"
        )
    row = Store(tmp_path / "store").read_table("runs").to_pylist()[0]
    assert (row["status"], row["epochs"]) == ("failed", 0)


def test_step_done_is_not_repeated(tmp_path, small_config, monkeypatch):
    run = nnbuild.open_run(small_config, tmp_path, now=datetime(2026, 1, 1, tzinfo=UTC))
    with nnbuild.run_context(run):
        data = pipeline.load_data(run)
        built = pipeline.build_model(run, data)
        monkeypatch.setattr("nnbuild.models.build", lambda *_: pytest.fail("built again"))
        assert pipeline.build_model(run, data) == built
        assert pipeline.load_data(run) == data
        (run.folder / "model" / "uncompiled.keras").write_bytes(b"changed")
        monkeypatch.undo()
        assert pipeline.build_model(run, data) == built


def test_resume_held_run_raises(tmp_path, small_config):
    run = nnbuild.open_run(small_config, tmp_path)
    with locks.lock(run.folder):
        assert Store(tmp_path).unfinished_runs()[0].held
        with pytest.raises(LockedError, match=r"held by process \d+ on "):
            nnbuild.retrain(store=tmp_path, resume=run.run_id)
    assert not Store(tmp_path).unfinished_runs()[0].held
    assert nnbuild.retrain(store=tmp_path, resume=run.run_id).run_id == run.run_id


def test_unexpected_error_fails_run(tmp_path, small_config, monkeypatch):
    monkeypatch.setattr("nnbuild.evaluation.evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nnbuild.retrain(small_config, tmp_path)
    row = Store(tmp_path).read_table("runs").to_pylist()[0]
    assert row["error"] == "ZeroDivisionError: division by zero"
    assert Store(tmp_path).read_table("history").num_rows > 0


def test_full_disk_leaves_run_resumable(tmp_path, small_config, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    with pytest.raises(StoreError, match="No space left on device; free some space") as caught:
        nnbuild.retrain(small_config, tmp_path)
    monkeypatch.undo()
    run_id = Store(tmp_path).unfinished_runs()[0].run_id
    assert f"--resume {run_id}" in caught.value.__notes__[0]
    assert nnbuild.retrain(store=tmp_path, resume=run_id).status == "succeeded"


def test_real_mnist_from_all_packagings(tmp_path, real_mnist):
    from nnbuild.data.sources import load

    dataset = load("mnist", data_dir=real_mnist, cache=tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.classes, dataset.image_shape) == (
        60_000,
        10_000,
        10,
        (28, 28, 1),
    )


def test_moved_store_works(tmp_path, small_config, small_run):
    (run_id,) = small_run.run_ids()
    shutil.copytree(small_run.root, tmp_path / "one")
    before = Store(tmp_path / "one").read_table("predictions")
    (tmp_path / "one").rename(tmp_path / "two")
    assert Store(tmp_path / "two").read_table("predictions", run_id).equals(before)
    again = nnbuild.retrain(small_config, tmp_path / "two")
    assert Store(tmp_path / "two").run_ids() == [run_id, again.run_id]


def test_reading_changes_nothing(finished):
    store, run_ids = finished
    before = tree_digest(store.root)
    for name in TABLES:
        store.read_table(name, run_ids[0], columns=None)
    assert tree_digest(store.root) == before
    with pytest.raises(StoreError, match="no committed run"):
        store.read_table("runs", "20200101T000000000Z-000000")
    with pytest.raises(StoreError, match=r"is not a valid name|no table"):
        store.read_table("../runs")


def test_run_own_idx_files_succeeds(tmp_path: Path, small_config):
    folder = write_idx(tmp_path / "own", separable(shape=(8, 8, 1), classes=4), gzipped=True)
    committed = nnbuild.retrain(
        with_changes(small_config, {"dataset": {"name": str(folder)}}), tmp_path / "store"
    )
    assert np.isfinite(
        Store(tmp_path / "store").read_table("runs", committed.run_id)["test_loss"][0].as_py()
    )


def test_parallel_runs_all_commit(tmp_path, small_folder):
    program = (
        "import sys, nnbuild; "
        "config = nnbuild.RunConfig.model_validate({'dataset': {'name': sys.argv[2]}, "
        "'model': {'name': 'lab'}, 'training': {'epochs': 2}, 'seed': int(sys.argv[3])}); "
        "nnbuild.retrain(config, sys.argv[1])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store"), str(small_folder)]
    together = [subprocess.Popen([*command, str(seed)]) for seed in range(3)]
    assert [each.wait(300) for each in together] == [0, 0, 0]
    store = Store(tmp_path / "store")
    rows = store.read_table("runs").to_pylist()
    assert sorted(row["seed"] for row in rows) == [0, 1, 2]
    assert store.unfinished_runs() == []
    promoted = [row["run_id"] for row in rows if row["promoted"]]
    changes = [each.run_id for each in champion.history(store)]
    assert sorted(promoted) == sorted(changes)
    assert champion.current(store) == changes[-1]
