"""Rebuilding the report of a committed run: the same bytes, or an error of one line."""

import json
import shutil

import pytest

import nnbuild
from flows.cli.runs import report as command
from nnbuild.config.schema import RunConfig
from nnbuild.errors import DivergedError, StoreError
from nnbuild.report import rebuild
from nnbuild.store import Store
from nnbuild.store.filesystem import file_digest


@pytest.fixture(scope="module")
def committed(tmp_path_factory, small_folder):
    """A store with a run that succeeded and a run that failed."""
    root = tmp_path_factory.mktemp("reports") / "store"
    training = {"epochs": 2, "batch_size": 16, "threads": 2}
    config = {
        "dataset": {"name": str(small_folder)},
        "model": {"name": "lab"},
        "training": training,
    }
    done = nnbuild.retrain(RunConfig.model_validate(config), root)
    wild = config | {
        "model": {"name": "regularized", "l2": 10},
        "training": training | {"learning_rate": 100, "optimizer": "sgd", "epochs": 50},
    }
    with pytest.raises(DivergedError):
        nnbuild.retrain(RunConfig.model_validate(wild), root)
    return root, done.run_id


@pytest.fixture
def store(committed, tmp_path):
    """A copy of that store, to damage."""
    root, run_id = committed
    shutil.copytree(root, tmp_path / "store")
    return Store(tmp_path / "store"), run_id


def page_of(store, run_id):
    return store.root / "runs" / run_id / "report.html"


def require_vouched(store, run_id):
    kept = store.manifest(run_id).files[f"runs/{run_id}/report.html"]
    path = page_of(store, run_id)
    assert (file_digest(path), path.stat().st_size) == (kept.sha256, kept.bytes)


def test_rebuild_gives_the_committed_page(store):
    store, run_id = store
    before, manifest = page_of(store, run_id).read_bytes(), store.manifest(run_id)
    page_of(store, run_id).write_text("spoilt")
    assert rebuild(store, run_id) == page_of(store, run_id)
    assert page_of(store, run_id).read_bytes() == before
    assert store.manifest(run_id) == manifest


def test_rebuild_without_dataset_is_noted(store):
    store, run_id = store
    shutil.rmtree(store.root / "datasets")
    assert b"<img" in page_of(store, run_id).read_bytes()
    rebuild(store, run_id)
    assert b"<img" not in page_of(store, run_id).read_bytes()
    require_vouched(store, run_id)


def test_moved_store_gives_the_same_page(store, tmp_path):
    store, run_id = store
    before = page_of(store, run_id).read_bytes()
    store.root.rename(tmp_path / "elsewhere")
    assert rebuild(Store(tmp_path / "elsewhere"), run_id).read_bytes() == before


def test_the_command_says_where_it_is(store, capsys):
    store, run_id = store
    command(run_id, store.root, as_json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {
        "run_id": run_id,
        "report": str(page_of(store, run_id)),
        "bytes": page_of(store, run_id).stat().st_size,
    }
    command(run_id, store.root, as_json=False)
    assert capsys.readouterr().out == f"{page_of(store, run_id)}\n"


def test_impossible_rebuild_is_one_line(store):
    store, run_id = store
    failed = next(each for each in store.run_ids() if each != run_id)
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    for wanted, message in (
        ("20200101T000000000Z-abcdef", "no committed run"),
        ("nonsense", "invalid run ID"),
        (failed, "status 'failed', expected 'succeeded'"),
    ):
        with pytest.raises(StoreError, match=message) as caught:
            rebuild(store, wanted)
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before


def _no_predictions(store, run_id):
    shutil.rmtree(store.partition("predictions", run_id))


def _damaged_table(store, run_id):
    next(store.partition("history", run_id).iterdir()).write_bytes(b"PAR1 no more")


def _damaged_images(store, run_id):
    path = next(store.root.glob("datasets/*/*/test.parquet"))
    path.write_bytes(path.read_bytes()[:-1])


def _half_a_manifest(store, run_id):
    path = store.root / "runs" / run_id / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["steps"]["fit_model"]
    path.write_text(json.dumps(manifest))


def _no_manifest_at_all(store, run_id):
    (store.root / "runs" / run_id / "manifest.json").write_text("[]")


def _a_row_of_nothing(store, run_id):
    path = store.root / "runs" / run_id / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "row": {}}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_predictions, "has no table predictions"),
        (_damaged_table, "cannot read"),
        (_damaged_images, "cannot read the test images"),
        (_no_manifest_at_all, "not a valid manifest: it has no run_id"),
        (_a_row_of_nothing, "its row has no status"),
        (_half_a_manifest, "its steps has no fit_model; restore"),
    ],
)
def test_damaged_table_is_named(store, spoil, message):
    store, run_id = store
    before = page_of(store, run_id).read_bytes()
    spoil(store, run_id)
    with pytest.raises(StoreError, match=message) as caught:
        rebuild(store, run_id)
    assert "\n" not in str(caught.value)
    assert page_of(store, run_id).read_bytes() == before
