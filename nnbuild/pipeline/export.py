"""Export the network, so that scoring does without TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np

from nnbuild import engines
from nnbuild.data.dataset import Split
from nnbuild.engines import Pixels
from nnbuild.errors import ContractError, StoreError, raised
from nnbuild.models.onnx_export import export_onnx
from nnbuild.pipeline.data import read_data
from nnbuild.pipeline.step import cached_step
from nnbuild.pipeline.training import read_model
from nnbuild.store.filesystem import fsync_dir
from nnbuild.store.run import Run
from nnbuild.store.step_results import ExportedModel, FittedModel, LoadedData

_PROBE = 128
_FEW = (slice(0, 1), slice(3, 6))  # scoring cuts its batches as it likes
_MOST_DIFFERENCE = 1e-4


@cached_step(ExportedModel)
def export_model(run: Run, data: LoadedData, fitted: FittedModel) -> ExportedModel:
    """Export the network to ONNX, and hold it against Keras's logits on some test images and some of noise.

    A network that ONNX cannot express, or that gives other logits there, is not exported; the result says why.
    """
    probe = _probe(read_data(run, data).test)
    model = read_model(run, fitted)
    path, unproven = (run.folder / "model" / name for name in ("model.onnx", "unproven.onnx"))
    path.unlink(missing_ok=True)
    try:
        export_onnx(model, unproven, data.image_shape)
        compared = _compared(model, unproven, probe)
        unproven.replace(path)
        fsync_dir(path.parent)
    except (StoreError, OSError):  # a disk in trouble says nothing about the network
        raise
    except Exception as error:  # noqa: BLE001  (the converter raises whatever it meets)
        return _not_exported(str(error) if isinstance(error, ContractError) else raised(error))
    finally:
        unproven.unlink(missing_ok=True)
    return ExportedModel(
        path=run.relative(path),
        remark="",
        largest_difference=compared,
        same_predictions=True,
        probe=len(probe),
        files=run.digests("model/model.onnx"),
    )


def _compared(model: Any, path: Path, probe: Pixels) -> float:
    """Compare an exported file with its model.

    Returns:
        The largest difference of a logit from Keras's, relative to the largest logit of its row.

    Raises:
        ContractError: The two do not agree, or not for a batch of another size.
    """
    engine = engines.OnnxEngine(path.read_bytes(), threads=1)
    expected = engines.KerasEngine(model, len(probe)).logits(probe)
    scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    differences = []
    for rows in (slice(None), *(each for each in _FEW if len(probe[each]))):
        found = engine.logits(probe[rows])
        if found.shape != expected[rows].shape:
            raise ContractError(
                f"it gives logits of shape {found.shape} for {len(probe[rows])} images"
            )
        differences.append(float((np.abs(found - expected[rows]) / scale[rows]).max()))
        if not differences[-1] <= _MOST_DIFFERENCE:  # nor if it is no number
            raise ContractError(
                f"its logits differ from Keras's by {differences[-1]:.2g} of the row's largest"
            )
        if (found.argmax(axis=1) != expected[rows].argmax(axis=1)).any():
            raise ContractError("it predicts another class than Keras for some images")
    return max(differences)


def _probe(split: Split) -> Pixels:
    """The first images of a split, and as many of noise, which no network has seen."""
    some = split.images[:_PROBE]
    return np.concatenate([some, np.random.default_rng(0).integers(0, 256, some.shape, np.uint8)])


def _not_exported(why: str) -> ExportedModel:
    return ExportedModel(
        path=None, remark=why, largest_difference=None, same_predictions=None, probe=0
    )
