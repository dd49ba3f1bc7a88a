"""Export the network, so that scoring does without TensorFlow."""

import numpy as np

from nnbuild import engines
from nnbuild.data.dataset import Split
from nnbuild.engines import Pixels
from nnbuild.errors import StoreError
from nnbuild.models.exporting import export_onnx
from nnbuild.results import ExportedModel, FittedModel, LoadedData
from nnbuild.steps.data import read_data
from nnbuild.steps.network import read_model
from nnbuild.steps.once import once
from nnbuild.store.run import Run

_PROBE = 128
_MOST_DIFFERENCE = 1e-4


@once(ExportedModel)
def export_model(run: Run, data: LoadedData, fitted: FittedModel) -> ExportedModel:
    """Export the network to ONNX, and hold it against Keras's logits on some test images and some of noise.

    A network that ONNX cannot express, or that gives other logits there, is not exported; the result says why.
    """
    probe = _probe(read_data(run, data).test)
    model = read_model(run, fitted)
    path = run.folder / "model" / "model.onnx"
    try:
        export_onnx(model, path, data.image_shape)
        found = engines.OnnxEngine(path, threads=1).logits(probe)
    except (StoreError, OSError):  # a disk in trouble says nothing about the network
        raise
    except Exception as error:  # noqa: BLE001  (the converter raises whatever it meets)
        return _not_exported(" ".join(f"{type(error).__name__}: {error}".split())[:300])
    expected = engines.KerasEngine(model, len(probe)).logits(probe)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    difference = float(
        (np.abs(found - expected) / np.maximum(scale, np.finfo(np.float32).tiny)).max()
    )
    same = bool((found.argmax(axis=1) == expected.argmax(axis=1)).all())
    if not (same and difference <= _MOST_DIFFERENCE):
        path.unlink()
        return _not_exported(
            f"its logits differ from Keras's by {difference:.2g} of the row's largest"
        )
    return ExportedModel(
        path=run.relative(path),
        remark="",
        largest_difference=difference,
        same_predictions=same,
        probe=len(probe),
        files=run.digests("model/model.onnx"),
    )


def _probe(split: Split) -> Pixels:
    """The first images of a split, and as many of noise, which no network has seen."""
    some = split.images[:_PROBE]
    return np.concatenate([some, np.random.default_rng(0).integers(0, 256, some.shape, np.uint8)])


def _not_exported(why: str) -> ExportedModel:
    return ExportedModel(
        path=None, remark=why, largest_difference=None, same_predictions=None, probe=0
    )
