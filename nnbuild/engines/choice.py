"""Which engine scores by a run's model."""

from collections.abc import Mapping
from typing import Any


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
