"""The preprocessing of a run: the same pixels and logits of a file on every path."""

import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from score_data import rows, scored

from nnbuild.config.schema import RunConfig
from nnbuild.data.dataset_reader import read_dataset
from nnbuild.data.formats import open_stream
from nnbuild.data.preprocessing import METADATA_KEY, Preprocessing
from nnbuild.data.streams import StreamOptions
from nnbuild.engines import OnnxEngine
from nnbuild.errors import ContractError, DataError
from nnbuild.pipeline.run import retrain
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.export import export_run
from nnbuild.scoring.models import resolve_model
from nnbuild.store import Store

SIZE = [12, 16]


def photos_module():
    path = Path(__file__).parents[2] / "benchmarks" / "photos.py"
    spec = importlib.util.spec_from_file_location("photos", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder with 40 photos of 20 sizes, and a store with a run on them."""
    folder = tmp_path_factory.mktemp("photos")
    program = photos_module()
    program.write_photos(folder / "photos", 40, 20)
    program.write_bytes(folder / "photos" / "test", folder / "test.parquet")
    config = RunConfig.model_validate(
        {
            "dataset": {"name": str(folder / "photos"), "image_size": SIZE, "channels": 3},
            "model": {"name": "lab"},
            "training": {"epochs": 1, "threads": 2},
            "seed": 1,
        }
    )
    run = retrain(config, folder / "store")
    return program, folder, Store(folder / "store"), run.run_id


def test_logits_are_equal_on_every_path(photos):
    program, folder, store, run_id = photos
    paths = program.compare(store, run_id, folder / "photos" / "test", folder / "test.parquet", 4)
    found = {name: difference for name, difference, _ in paths}
    assert list(found) == ["folder", "bytes in Parquet", "each alone", "evaluation"]
    assert found["bytes in Parquet"] == 0
    assert found["each alone"] < 1e-6  # other kernels for one row, on some processors
    assert found["evaluation"] < 1e-6


def evaluated(store, run_id):
    data = store.manifest(run_id).steps.load_data
    return read_dataset(store.local_dataset(data.name, data.digest)).test


def test_pixels_are_equal_on_every_path(photos):
    _, folder, store, run_id = photos
    expected = evaluated(store, run_id).images
    model = resolve_model(store, ScoreConfig(input="-", model=run_id))
    options = StreamOptions(model.image_shape, preprocessing=model.preprocessing)

    def pixels(source):
        stream = open_stream(str(source), options)
        batches = [each for chunk in stream.chunks() for each in stream.read(chunk, 3)]
        return np.concatenate([each.images for each in batches])

    test = folder / "photos" / "test"
    np.testing.assert_array_equal(pixels(test), expected)
    np.testing.assert_array_equal(pixels(folder / "test.parquet"), expected)
    files = sorted(file for file in test.rglob("*") if file.is_file())
    np.testing.assert_array_equal(np.concatenate([pixels(file) for file in files]), expected)


def test_evaluation_has_the_logits_of_scoring(photos):
    program, folder, store, run_id = photos
    test = evaluated(store, run_id)
    engine = OnnxEngine((store.root / "runs" / run_id / "model.onnx").read_bytes(), 1)
    found = program.scored(store, folder / "photos" / "test", run_id)
    for expected, row in zip(engine.logits(test.images), found.values(), strict=True):
        np.testing.assert_allclose(program.values(row, "logit"), expected, rtol=1e-5, atol=1e-6)


def test_arrays_are_resized_like_pictures(photos, tmp_path):
    program, _, store, run_id = photos
    pixels = np.random.default_rng(0).integers(0, 256, (3, 31, 20, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(pixels):
        program.Image.fromarray(image[..., 0]).save(tmp_path / "pictures" / f"{number}.png")
    logits = [
        rows(store, scored(store, input=source, model=run_id, logits=True))
        .select(["logit_0", "logit_1"])
        .to_pylist()
        for source in (tmp_path / "a.npz", tmp_path / "pictures")
    ]
    assert logits[0] == logits[1]


def test_preprocessing_is_part_of_run_and_model(photos, tmp_path):
    _, _, store, run_id = photos
    expected = Preprocessing(image_size=SIZE, channels=3).model_dump(mode="json")
    manifest = json.loads((store.root / "runs" / run_id / "manifest.json").read_text())
    assert manifest["steps"]["load_data"]["preprocessing"] == expected
    assert manifest["config"]["dataset"]["resize"] == "pad"
    run = store.root / "runs" / run_id
    properties = {each.key: each.value for each in onnx.load(run / "model.onnx").metadata_props}
    assert json.loads(properties[METADATA_KEY]) == expected
    with zipfile.ZipFile(run / "model.keras") as archive:
        assert json.loads(archive.read("metadata.json"))[METADATA_KEY] == expected
    assert "image_size [12, 16]" in (run / "report.html").read_text()
    exported = export_run(store, run_id, tmp_path / "served.onnx", "onnx")
    properties = {each.key: each.value for each in onnx.load(exported).metadata_props}
    assert json.loads(properties[METADATA_KEY]) == expected
    folder = export_run(store, run_id, tmp_path / "served", "savedmodel")
    text = (folder / "assets.extra" / "preprocessing.json").read_text()
    assert json.loads(text) == expected


def test_model_file_carries_its_preprocessing(photos, tmp_path):
    _, folder, store, run_id = photos
    path = tmp_path / "model.onnx"
    path.write_bytes((store.root / "runs" / run_id / "model.onnx").read_bytes())
    digest = store.manifest(run_id).files[f"runs/{run_id}/model.onnx"].sha256
    by_run, by_file = (
        rows(store, scored(store, input=folder / "photos" / "test", logits=True, **model))
        for model in (
            {"model": run_id, "calibrated": False},
            {"model": str(path), "digest": digest, "calibrated": False},
        )
    )
    assert by_run["logit_0"].equals(by_file["logit_0"])


def test_preprocessing_of_a_later_version_is_refused(photos, tmp_path):
    _, _, store, run_id = photos
    model = onnx.load(store.root / "runs" / run_id / "model.onnx")
    for each in model.metadata_props:
        if each.key == METADATA_KEY:
            each.value = each.value.replace('"rules": 1', '"rules": 2')
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config = ScoreConfig(input="-", model=str(path), digest=digest)
    with pytest.raises(ContractError, match=r"use the version that it was trained with"):
        resolve_model(store, config)


def test_broken_photo_is_quarantined_or_stops(photos, tmp_path):
    _, folder, store, run_id = photos
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    source = next((folder / "photos" / "test").rglob("*.jpg"))
    (tmp_path / "in" / "b.jpg").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=r"a\.png.*not a readable picture"):
        scored(store, input=tmp_path / "in", model=run_id)
    done = scored(store, input=tmp_path / "in", model=run_id, on_error="quarantine")
    assert rows(store, done)["path"].to_pylist() == ["b.jpg"]


def test_unreadable_photos_are_listed_in_the_checks(photos, tmp_path):
    program, _, _, _ = photos
    program.write_photos(tmp_path / "photos", 60, 5, seed=3)
    broken = next((tmp_path / "photos" / "train").rglob("*.webp"))
    broken.write_bytes(broken.read_bytes()[:40])
    settings = {"name": str(tmp_path / "photos"), "image_size": SIZE, "channels": 1}
    config = {"dataset": settings, "model": {"name": "lab"}, "training": {"epochs": 1}}
    with pytest.raises(DataError, match=broken.name):
        retrain(RunConfig.model_validate(config), tmp_path / "store")
    settings |= {"on_error": "skip", "max_errors": 0.02}
    run = retrain(RunConfig.model_validate(config), tmp_path / "store")
    steps = Store(tmp_path / "store").manifest(run.run_id).steps
    assert steps.load_data.unreadable == 1
    (check,) = [each for each in steps.check_data.checks if each.name == "unreadable_pictures"]
    assert check.measured == "1"
    assert broken.name in check.detail
