"""Engines compute logits from batches of images: Keras and ONNX Runtime behind one interface."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nnbuild.engines.onnx import OnnxEngine
    from nnbuild.store.manifests import Manifest

Logits = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class Engine(Protocol):
    """Interface of the engines.

    Attributes:
        name: Name of the engine in tables.
    """

    name: str

    def logits(self, images: Pixels) -> Logits:
        """Compute the logits of a batch.

        Args:
            images: Images, uint8, shape (n, height, width, channels), n of 1 or more.

        Returns:
            Logits, float32, shape (n, classes).
        """


class KerasEngine:
    """The reference engine: one compiled function of a Keras model, called with equal batches.

    Args:
        model: Keras model from pixels to logits.
        batch_size: Images per call; smaller batches are padded with zeros, so that the model is
            traced only once.
    """

    name = "keras"

    def __init__(self, model: Any, batch_size: int) -> None:
        from nnbuild.runtime.tensorflow import tf

        self._batch_size = batch_size
        self._constant = tf.constant
        self._infer = tf.function(
            lambda images: model(images, training=False), reduce_retracing=True
        )

    def logits(self, images: Pixels) -> Logits:
        """Compute the logits of a batch, see `Engine`."""
        missing = self._batch_size - len(images)
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing > 0 else images
        logits: Logits = self._infer(self._constant(padded)).numpy()
        return logits[: len(images)].astype(np.float32, copy=False)


__all__ = ["Engine", "KerasEngine", "Logits", "OnnxEngine", "Pixels"]


def __getattr__(name: str) -> Any:
    from nnbuild.runtime.lazy_imports import attach

    return attach(
        name,
        {"nnbuild.engines.onnx": ("OnnxEngine",)},
        __name__,
    )


def engine_of_run(manifest: "Manifest") -> tuple[str, str]:
    """Return the engine for the model of a run, and the reason if it is not ONNX Runtime.

    Args:
        manifest: Manifest of a run that succeeded.

    Returns:
        `onnx` and an empty string, or `keras` and the reason why the model was not exported.
    """
    exported = manifest.steps.export_model
    if exported is None:
        return "keras", "it was never exported"
    # Version 0.1 could leave a file that had not been verified, so the result of the step decides.
    return ("onnx", "") if exported.path else ("keras", exported.remark)


def describe_engine(engine: str, reason: str) -> str:
    """Describe the engine, with the reason if it is not ONNX Runtime."""
    if engine == "onnx":
        return "ONNX Runtime"
    return f"Keras; not exported to ONNX: {reason}" if reason else "Keras"
