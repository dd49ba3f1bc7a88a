"""The gate compares a run with the champion on the run's test images."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_data import run_config, small_arrays

from nnbuild.config.sections import GateConfig
from nnbuild.data.pixels import is_mapped
from nnbuild.errors import DataError, StoreError
from nnbuild.evaluation.promotion import Incomparable
from nnbuild.pipeline import comparison, promotion
from nnbuild.pipeline.comparison import Challenger, Comparison, challenger_of, compare
from nnbuild.pipeline.data import load_data, read_golden
from nnbuild.pipeline.run import (
    decide_and_commit,
    open_run,
    retrain,
    run_context,
    train_and_evaluate,
)
from nnbuild.store import Run, Store, champion
from nnbuild.store.filesystem import file_digest, upload_folder

SHAPE, CLASSES = (8, 8, 1), 3


def arrays(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels; those of another seed have other patterns."""
    found = small_arrays(classes=CLASSES, shape=SHAPE, train=count, test=1, seed=seed)
    return found["x_train"], found["y_train"]


def write(path: Path, images: np.ndarray, labels: np.ndarray, **others: np.ndarray) -> Path:
    np.savez(path, x_train=images, y_train=labels, **others)
    return path


def grown(folder: Path, count: int) -> Path:
    """Write the data of a night: all images so far, under one name, without a test split."""
    images, labels = arrays(400)
    return write(folder / "grown.npz", images[:count], labels[:count])


def images_of(folder: Path, *names: str) -> set[bytes]:
    """Return the images of splits as bytes, read without the product."""
    columns = [pq.read_table(folder / f"{name}.parquet")["image"] for name in names]
    return {value for column in columns for value in column.to_pylist()}


@dataclass(frozen=True)
class Night:
    """A run in staging, and the store with the champion."""

    store: Store
    run: Run
    challenger: Challenger
    champion: str

    def compare(self, **settings: object) -> Comparison | Incomparable:
        config = GateConfig.model_validate(settings)
        return compare(self.challenger, self.store, self.champion, config)

    @property
    def champion_data(self) -> Path:
        data = self.store.manifest(self.champion).steps.load_data
        return self.store.dataset_folder(data.name, data.digest)


def night(store: Store, path: Path, **changed: object) -> Night:
    """Train a challenger on a dataset, up to the gate."""
    run = open_run(run_config(path, **changed), store.root)
    with run_context(run):
        train_and_evaluate(run)
    return Night(store, run, challenger_of(run, load_data(run)), str(champion.current(store)))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Root of a store with the champion of the first 240 images."""
    folder = tmp_path_factory.mktemp("first")
    retrain(run_config(grown(folder, 240), training={"epochs": 3}), folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def _second(tmp_path_factory, first):
    """The night after, with 400 images."""
    folder = tmp_path_factory.mktemp("second")
    store = Store(shutil.copytree(first, folder / "store"))
    return night(store, grown(folder, 400), seed=2)


@pytest.fixture
def second(_second, tmp_path):
    """A writable copy of the night after."""
    root = Path(shutil.copytree(_second.store.root, tmp_path / "store"))
    store, run = Store(root), Run(root, _second.run.run_id)
    return Night(store, run, challenger_of(run, load_data(run)), _second.champion)


def test_champion_scores_new_test_images(second):
    from nnbuild.models import load_model

    found = second.compare()
    own = second.challenger.folder
    test = images_of(own, "test")
    assert test > images_of(second.champion_data, "test")
    assert not test & images_of(second.champion_data, "train")
    assert (found.paired.rescored, found.paired.left_out) == (len(test), 0)
    manifest = second.store.manifest(second.champion)
    path = second.store.root / "runs" / second.champion / "model.keras"
    model = load_model(path, manifest.files[f"runs/{second.champion}/model.keras"].sha256)
    table = pq.read_table(own / "test.parquet")
    images = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(-1, *SHAPE)
    expected = np.asarray(model(images)).argmax(axis=1) == table["label"].to_numpy()
    np.testing.assert_array_equal(found.paired.other, expected)
    np.testing.assert_array_equal(found.paired.labels, table["label"].to_numpy())
    assert found.metrics["accuracy"] == pytest.approx(expected.mean())
    assert set(found.metrics) == set(second.challenger.metrics)


def test_engines_give_the_same_pairs(second, monkeypatch):
    from nnbuild.scoring import models

    before = sorted(second.run.folder.iterdir())
    onnx = second.compare()
    monkeypatch.setattr(models, "engine_of_run", lambda _: ("keras", "not exported"))
    keras = second.compare()
    np.testing.assert_array_equal(onnx.paired.other, keras.paired.other)
    assert sorted(second.run.folder.iterdir()) == before


def test_changed_test_set_is_kept_if_set(second):
    found = second.compare(on_test_set_change="keep")
    assert isinstance(found, Incomparable)
    assert "gate.on_test_set_change is keep" in found.reason


def test_comparison_ignores_parquet_version(first, tmp_path):
    store = Store(shutil.copytree(first, tmp_path / "store"))
    other = night(store, grown(tmp_path, 240), seed=2)
    before = other.compare()
    folder = other.champion_data
    description = json.loads((folder / "dataset.json").read_text())
    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, compression="gzip", row_group_size=9)
        assert file_digest(path) != description[path.stem]["sha256"]
        description[path.stem] |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    (folder / "dataset.json").write_text(json.dumps(description))
    again = challenger_of(other.run, load_data(other.run))
    after = compare(again, store, other.champion, GateConfig())
    for found in (before, after):
        assert (found.paired.rescored, found.paired.left_out) == (0, 0)
    np.testing.assert_array_equal(before.paired.other, after.paired.other)
    assert before.metrics == after.metrics
    assert before.metrics["accuracy"] == pytest.approx(before.paired.other.mean())


def test_images_of_either_training_are_left_out(first, tmp_path):
    store = Store(shutil.copytree(first, tmp_path / "store"))
    images, labels = arrays(400)
    more = small_arrays(classes=CLASSES, shape=SHAPE, train=60, test=1, seed=1)
    path = write(
        tmp_path / "leaky.npz",
        images[300:],
        labels[300:],
        x_test=np.concatenate([images[:30], images[300:310], more["x_train"]]),
        y_test=np.concatenate([labels[:30], labels[300:310], more["y_train"]]),
        x_val=more["x_train"][:20],
        y_val=more["y_train"][:20],
    )
    leaky = night(store, path)
    found = leaky.compare()
    used = images_of(leaky.champion_data, "train") | images_of(
        leaky.challenger.folder, "train", "validation"
    )
    test = pq.read_table(leaky.challenger.folder / "test.parquet")["image"].to_pylist()
    fresh = [image for image in test if image not in used]
    assert 0 < len(fresh) < len(test)
    assert found.paired.left_out == len(test) - len(fresh)
    assert found.paired.rescored == len(found.paired.labels) == len(fresh)
    assert found.metrics == {}  # the challenger's are those of more images


def test_no_image_left_is_incomparable(first, tmp_path):
    store = Store(shutil.copytree(first, tmp_path / "store"))
    images, labels = arrays(400)
    trained = sorted(images_of(next((first / "datasets").glob("*/*")), "train"))
    path = write(
        tmp_path / "seen.npz",
        images[240:],
        labels[240:],
        x_test=np.stack([np.frombuffer(each, np.uint8).reshape(SHAPE) for each in trained]),
        y_test=np.arange(len(trained)) % CLASSES,
    )
    found = night(store, path).compare()
    assert isinstance(found, Incomparable)
    assert "test images are left out" in found.reason


@pytest.mark.parametrize(
    ("shape", "classes", "says"),
    [
        ((8, 8, 3), 3, "images of 8 × 8 × 1, this run images of 8 × 8 × 3"),
        ((8, 8, 1), 4, "the classes 0, 1, 2, this run 0, 1, 2, 3"),
    ],
)
def test_other_images_or_classes_keep_champion(first, tmp_path, shape, classes, says):
    store = Store(shutil.copytree(first, tmp_path / "store"))
    path = tmp_path / "grown.npz"
    np.savez(path, **small_arrays(classes=classes, shape=shape, train=60, test=40))
    standing = champion.current(store)
    run_id = retrain(run_config(path), store.root).run_id
    (row,) = store.read_table("decisions", run_id).to_pylist()
    assert (row["outcome"], row["promoted"]) == ("skipped", False)
    assert says in row["reason"]
    assert champion.current(store) == standing
    assert store.manifest(run_id).steps.decide.champion_metrics == {}


DAMAGES = {
    "model gone": ("runs/*/model.onnx", Path.unlink),
    "model cut": ("runs/*/model.onnx", lambda path: path.write_bytes(path.read_bytes()[:-9])),
    "manifest gone": ("runs/*/manifest.json", Path.unlink),
    "manifest cut": ("runs/*/manifest.json", lambda path: path.write_text("{")),
    "dataset gone": ("datasets/*/*", shutil.rmtree),
    "digests cut": ("datasets/*/*/train.digests", lambda path: path.write_bytes(b"")),
    "run gone": ("tables/runs/run_id=*", shutil.rmtree),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_champion_stays(second, damage):
    pattern, break_it = DAMAGES[damage]
    for path in second.store.root.glob(pattern):
        break_it(path)
    found = second.compare()
    assert isinstance(found, Incomparable)
    assert "\n" not in found.reason
    with run_context(second.run):
        decided = promotion.decide(second.run, load_data(second.run))
    assert (decided.outcome, decided.promote) == ("skipped", False)
    assert second.champion in decided.reason


def test_damaged_pinned_champion_loses_nothing(second):
    champion.promote(second.store, second.champion, champion.Author("ada@host", "for the audit"))
    next(second.store.root.glob("runs/*/model.onnx")).write_bytes(b"damaged")
    with run_context(second.run):
        committed = decide_and_commit(second.run)
    (row,) = second.store.read_table("decisions", committed.run_id).to_pylist()
    assert (committed.status, row["outcome"]) == ("succeeded", "skipped")
    for word in ("for the audit", "model.onnx was changed"):
        assert word in row["reason"]
    assert "\n" not in row["reason"]
    assert champion.current(second.store) == second.champion


def test_unavailable_store_is_not_damage(second, monkeypatch):
    def refuse(*_):
        raise StoreError("cannot read it") from PermissionError(13, "Permission denied")

    monkeypatch.setattr(Store, "local_dataset", refuse)
    with pytest.raises(StoreError, match="cannot read it"):
        second.compare()


def test_identical_weights_need_no_scoring(first, tmp_path):
    store = Store(shutil.copytree(first, tmp_path / "store"))
    twin = night(store, grown(tmp_path, 240), training={"epochs": 3})
    for path in store.root.glob("runs/*/model.onnx"):
        path.unlink()
    found = twin.compare()
    assert found.paired.identical
    np.testing.assert_array_equal(found.paired.other, found.paired.challenger)
    assert found.metrics == twin.challenger.metrics


def test_equal_predictions_are_identical(second, monkeypatch):
    assert not second.compare().paired.identical
    monkeypatch.setattr(
        comparison, "_score", lambda challenger, *_: (challenger.predicted, challenger.metrics)
    )
    assert second.compare().paired.identical


def with_golden(night: Night, path: Path) -> Night:
    """Return the night as if it had been begun with a fixed set."""
    record = json.loads((night.run.folder / "run.json").read_text())
    record["config"]["gate"]["golden"] = str(path)
    (night.run.folder / "run.json").write_text(json.dumps(record))
    run = Run(night.run.root, night.run.run_id)
    return replace(night, run=run, challenger=challenger_of(run, load_data(run)))


def test_both_models_score_golden_set(second, tmp_path):
    images, labels = arrays(700)
    new, known = slice(640, 700), slice(0, 30)
    rows = np.r_[new, known]
    rows = rows[labels[rows] != 1]  # the classes are matched by name, not by position
    golden = with_golden(second, write(tmp_path / "golden.npz", images[rows], labels[rows]))
    found = comparison.compare_on_golden(golden.challenger, golden.store, golden.champion)
    used = images_of(golden.champion_data, "train") | images_of(golden.challenger.folder, "train")
    fresh = [row for row in rows if images[row].tobytes() not in used]
    np.testing.assert_array_equal(found.labels, labels[fresh])
    assert (found.rescored, found.left_out) == (len(fresh), len(rows) - len(fresh))
    assert found.left_out > 0
    assert found.challenger.mean() > 0.5  # chance is a third
    assert found.other.mean() > 0.5
    with run_context(golden.run):
        promotion.decide(golden.run, load_data(golden.run))
    row = pq.read_table(golden.run.folder / "tables" / "decisions.parquet").to_pylist()[0]
    assert row["golden_bound"] is not None


def test_mapped_images_are_compared_equally(second, tmp_path, monkeypatch):
    images, labels = arrays(700)
    path = write(tmp_path / "golden.npz", images[600:], labels[600:])
    golden = with_golden(second, path)
    comparisons = (
        lambda: comparison.compare_on_golden(golden.challenger, golden.store, golden.champion),
        lambda: second.compare().paired,
    )
    expected = [each() for each in comparisons]
    monkeypatch.setenv("NNBUILD_MEMORY", "8")  # an eighth of it holds no image
    assert is_mapped(read_golden(golden.run, golden.challenger.data).images)
    for found, paired in zip([each() for each in comparisons], expected, strict=True):
        assert (found.rescored, found.left_out) == (paired.rescored, paired.left_out)
        np.testing.assert_array_equal(found.challenger, paired.challenger)
        np.testing.assert_array_equal(found.other, paired.other)


def test_vanished_golden_set_keeps_champion(second, tmp_path):
    golden = with_golden(second, tmp_path / "gone.npz")
    with run_context(golden.run):
        decided = promotion.decide(golden.run, load_data(golden.run))
    assert decided.outcome == "skipped"
    assert "gate.golden" in decided.reason
    assert "gone.npz" in decided.reason


@pytest.mark.parametrize(
    ("classes", "shape", "says"),
    [
        (3, (8, 9, 1), "images of 8 × 9 × 1, expected 8 × 8 × 1"),
        (4, (8, 8, 1), "class '3' is not one of the 3 classes"),
        (0, (8, 8, 1), "no such file"),
    ],
)
def test_unusable_golden_set_is_refused_first(tmp_path, classes, shape, says):
    path = tmp_path / "golden.npz"
    if classes:
        np.savez(path, **small_arrays(classes=classes, shape=shape, train=12, test=12))
    config = run_config(grown(tmp_path, 240), gate={"golden": str(path)})
    with pytest.raises(DataError, match=f"gate.golden .*{says}") as caught:
        retrain(config, tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_remote_champion_scores(s3_store, first, tmp_path):
    upload_folder(first, Store(s3_store).root)
    run_id = retrain(run_config(grown(tmp_path, 400)), s3_store).run_id
    (row,) = Store(s3_store).read_table("decisions", run_id).to_pylist()
    assert row["rescored"] == row["examples"] > 0
    assert row["left_out"] == 0


def test_images_of_warm_starts_are_known(first, tmp_path):
    store = Store(shutil.copytree(first, tmp_path / "store"))
    (oldest,) = store.run_ids()
    warm = {"training": {"epochs": 1, "start": "champion"}}
    images, labels = arrays(700)
    path = write(tmp_path / "grown.npz", images[400:], labels[400:])
    newer = retrain(run_config(path, **warm), store.root).run_id
    assert store.manifest(newer).steps.build_model.start == oldest
    assert len(list(comparison._chain_of_starts(store, newer))) == 2
    late = night(store, path, seed=2)
    manifest = store.manifest(newer)
    assert manifest.steps.load_data.digest == late.challenger.data.digest
    seen = comparison._seen(late.challenger, store, manifest, late.challenger.fingerprint)
    data = store.manifest(oldest).steps.load_data
    folders = (store.dataset_folder(data.name, data.digest), late.challenger.folder)
    known = set.union(*(images_of(folder, "train") for folder in folders))
    assert len(np.unique(seen)) == len(known)
