"""What turns images into logits, a batch at a time."""

from typing import TYPE_CHECKING, Any

from nnbuild.engines.base import Engine, Logits, Pixels

if TYPE_CHECKING:
    from nnbuild.engines.keras import KerasEngine
    from nnbuild.engines.onnx import OnnxEngine

__all__ = ["Engine", "KerasEngine", "Logits", "OnnxEngine", "Pixels"]


def __getattr__(name: str) -> Any:
    from nnbuild.lazy import find

    return find(
        name,
        {"nnbuild.engines.keras": ("KerasEngine",), "nnbuild.engines.onnx": ("OnnxEngine",)},
        __name__,
    )
