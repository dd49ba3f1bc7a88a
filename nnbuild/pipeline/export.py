"""The step that exports the network to ONNX, so that scoring does not need TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np

from nnbuild import engines
from nnbuild.data.dataset import Split
from nnbuild.engines import Pixels
from nnbuild.errors import Caught, ContractError, StoreError, raised
from nnbuild.models.onnx_export import export_onnx
from nnbuild.pipeline.data import read_test_data
from nnbuild.pipeline.step import cached_step
from nnbuild.pipeline.training import read_model
from nnbuild.store.filesystem import fsync_dir
from nnbuild.store.run import Run
from nnbuild.store.step_results import ExportedModel, FittedModel, LoadedData

_PROBE = 128
_SMALL_BATCHES = (slice(0, 1), slice(3, 6))  # scoring uses batches of any size
_MAX_DIFFERENCE = 1e-4


@cached_step(ExportedModel)
def export_model(run: Run, data: LoadedData, fitted: FittedModel) -> ExportedModel:
    """Export the network to ONNX, and verify its logits on test images and on noise.

    If ONNX cannot express the network, or its logits differ from Keras's, there is no export; the
    result says why.
    """
    probe = _probe(read_test_data(run, data))
    model = read_model(run, fitted)
    path, unproven = (run.folder / "model" / name for name in ("model.onnx", "unproven.onnx"))
    path.unlink(missing_ok=True)
    try:
        # The converter raises anything, but a failing disk says nothing about the network.
        with Caught(StoreError, OSError) as caught:
            export_onnx(model, unproven, data.image_shape, data.preprocessing)
            difference = _largest_difference(model, unproven, probe)
            unproven.replace(path)
            fsync_dir(path.parent)
    finally:
        unproven.unlink(missing_ok=True)
    if (error := caught.error) is not None:
        return _not_exported(str(error) if isinstance(error, ContractError) else raised(error))
    return ExportedModel(
        path=run.relative(path),
        remark="",
        largest_difference=difference,
        same_predictions=True,
        probe=len(probe),
        files=run.digests("model/model.onnx"),
    )


def _largest_difference(model: Any, path: Path, probe: Pixels) -> float:
    """Compare the logits of an exported file with those of its model.

    Returns:
        Largest difference of a logit from Keras's, relative to the largest logit of its row.

    Raises:
        ContractError: The logits differ, or do so for a batch of another size.
    """
    engine = engines.OnnxEngine(path.read_bytes(), threads=1)
    expected = engines.KerasEngine(model, len(probe)).logits(probe)
    scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    differences = []
    for rows in (slice(None), *(each for each in _SMALL_BATCHES if len(probe[each]))):
        logits = engine.logits(probe[rows])
        if logits.shape != expected[rows].shape:
            raise ContractError(
                f"it returns logits of shape {logits.shape} for {len(probe[rows])} images"
            )
        differences.append(float((np.abs(logits - expected[rows]) / scale[rows]).max()))
        if not differences[-1] <= _MAX_DIFFERENCE:  # true for NaN too
            raise ContractError(
                f"its logits differ from Keras's by {differences[-1]:.2g} of the row's largest"
            )
        if (logits.argmax(axis=1) != expected[rows].argmax(axis=1)).any():
            raise ContractError("it predicts another class than Keras for some images")
    return max(differences)


def _probe(split: Split) -> Pixels:
    """Return the first images of a split, and as many of noise, which no network has seen."""
    images = split.images[:_PROBE]
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    return np.concatenate([images, noise])


def _not_exported(remark: str) -> ExportedModel:
    return ExportedModel(
        path=None, remark=remark, largest_difference=None, same_predictions=None, probe=0
    )
