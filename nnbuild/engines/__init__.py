"""What turns images into logits, a batch at a time."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nnbuild.engines.keras import KerasEngine
    from nnbuild.engines.onnx import OnnxEngine
from collections.abc import Mapping

Logits = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class Engine(Protocol):
    """Turns images into logits.

    Attributes:
        name: as it is written into tables.
    """

    name: str

    def logits(self, images: Pixels) -> Logits:
        """The logits of a batch.

        Args:
            images: uint8, shape (n, height, width, channels), n of 1 or more.

        Returns:
            float32, shape (n, classes), any real values.
        """


__all__ = ["Engine", "KerasEngine", "Logits", "OnnxEngine", "Pixels"]


def __getattr__(name: str) -> Any:
    from nnbuild.runtime.lazy_imports import find

    return find(
        name,
        {"nnbuild.engines.keras": ("KerasEngine",), "nnbuild.engines.onnx": ("OnnxEngine",)},
        __name__,
    )


def engine_of_run(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return the engine that scores by a run's model, and why it is not ONNX Runtime.

    Args:
        manifest: Of a run that succeeded, committed or about to be.

    Returns:
        `onnx` and an empty text, or `keras` and the reason that the export gave.
    """
    exported = manifest["steps"].get("export_model")
    if exported is None:
        return "keras", "it was never exported"
    # Before 0.2 a file that was not proven could be left beside the manifest: the result decides.
    return ("onnx", "") if exported["path"] else ("keras", exported["remark"])


def describe_engine(engine: str, reason: str) -> str:
    """Say what scores, and why it is not ONNX Runtime if there is a reason."""
    if engine == "onnx":
        return "ONNX Runtime"
    return f"Keras; not exported to ONNX: {reason}" if reason else "Keras"
