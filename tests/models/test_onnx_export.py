"""An exported model has the same logits, and the same bytes for the same weights."""

import numpy as np
import pytest
from run_values import values

from nnbuild import models, pipeline
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.engines import KerasEngine, OnnxEngine
from nnbuild.errors import ContractError
from nnbuild.models.architectures import NETWORKS
from nnbuild.models.onnx_export import export_onnx
from nnbuild.pipeline import run as runs
from nnbuild.store import Store
from nnbuild.store.filesystem import file_digest

SHAPE = (12, 12, 1)


def network(name, seed=0):
    """Return a compiled model, as after a fit: the exporter visits the optimizer too."""
    given = {"model": {"name": name}, "seed": seed, "training": {"dtype_policy": "float32"}}
    config = resolve(RunConfig.model_validate(given))
    model = models.build(config, SHAPE, 5)
    models.compile_model(model, config.training, steps=10)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_logits_equal_keras(tmp_path, name):
    model = network(name)
    export_onnx(model, tmp_path / "model.onnx", SHAPE)
    engine = OnnxEngine(tmp_path / "model.onnx", threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (9, *SHAPE), np.uint8)
    expected = KerasEngine(model, 9).logits(pixels)
    scale = np.abs(expected).max()
    for rows in (1, 4, 9):
        np.testing.assert_allclose(
            engine.logits(pixels[:rows]), expected[:rows], rtol=0, atol=1e-4 * scale
        )


@pytest.mark.parametrize("name", ["lab", "convnet"])
def test_onnx_threads_change_no_bit(tmp_path, name):
    export_onnx(network(name), tmp_path / "model.onnx", SHAPE)
    pixels = np.random.default_rng(0).integers(0, 256, (10_000, *SHAPE), np.uint8)
    alone, several = (OnnxEngine(tmp_path / "model.onnx", threads=threads) for threads in (1, 3))
    logits = several.logits(pixels)
    assert logits.tobytes() == alone.logits(pixels).tobytes()
    for row in (0, 4095, 4096, 9_999):
        np.testing.assert_allclose(
            alone.logits(pixels[row : row + 1])[0], logits[row], rtol=1e-4, atol=1e-5
        )


def test_export_bytes_follow_weights(tmp_path):
    digests = []
    for number, seed in enumerate((3, 3, 4)):
        export_onnx(network("convnet", seed), tmp_path / f"{number}.onnx", SHAPE)
        digests.append(file_digest(tmp_path / f"{number}.onnx"))
    assert digests[0] == digests[1] != digests[2]


def test_onnx_invalid_file_raises(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ContractError, match="ONNX Runtime cannot run"):
        OnnxEngine(tmp_path / "model.onnx")


def test_run_commits_verified_export(small_run):
    (run_id,) = small_run.run_ids()
    manifest = small_run.manifest(run_id)
    export = manifest.steps.export_model
    assert export.same_predictions
    assert export.largest_difference <= 1e-4
    name = f"runs/{run_id}/model.onnx"
    assert manifest.files[name].sha256 == file_digest(small_run.root / name)


def test_unexportable_model_is_committed(tmp_path, small_config, small_run, monkeypatch):
    from nnbuild.pipeline import export as exporting

    def broken(*_):
        raise ValueError("no such operation in ONNX")

    monkeypatch.setattr(exporting, "export_onnx", broken)
    committed = runs.retrain(small_config, tmp_path / "store")
    store = Store(tmp_path / "store")
    export = store.manifest(committed.run_id).steps.export_model
    assert export.path is None
    assert "no such operation" in export.remark
    assert not (store.root / "runs" / committed.run_id / "model.onnx").exists()
    assert values(store, committed.run_id) == values(small_run, *small_run.run_ids())


def test_export_other_logits_is_discarded(tmp_path, small_config, monkeypatch):
    from nnbuild.pipeline import export as exporting

    real = exporting.export_onnx

    def another(model, path, shape, preprocessing):
        model.set_weights([weight * 1.01 for weight in model.get_weights()])
        real(model, path, shape, preprocessing)
        model.set_weights([weight / 1.01 for weight in model.get_weights()])

    monkeypatch.setattr(exporting, "export_onnx", another)
    run = runs.open_run(small_config, tmp_path)
    data = pipeline.load_data(run)
    fitted = pipeline.fit_model(
        run, data, pipeline.compile_model(run, data, pipeline.build_model(run, data))
    )
    exported = pipeline.export_model(run, data, fitted)
    assert exported.path is None
    assert "differ from Keras's" in exported.remark
    assert not (run.folder / "model" / "model.onnx").exists()
