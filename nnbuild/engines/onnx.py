"""The engine that scores: ONNX Runtime, without TensorFlow."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from nnbuild.engines.base import Logits, Pixels
from nnbuild.errors import ContractError
from nnbuild.machine import processors

LOGITS = "logits"
ROWS_PER_CALL = "nnbuild.rows_per_call"
"""In a model's metadata: how many images it runs at once the fastest."""

_ROWS = 256
_ONLY_ERRORS = 3


class OnnxEngine:
    """Runs an exported model: a few images a call, and so many calls at once as there are threads.

    Threads inside one call would wait for each other at every layer: on two processors a convolutional network is a
    fifth slower with them. And how a batch is cut does not depend on the threads, so that its logits do not either.

    Args:
        model: path of a `.onnx` file, or its bytes.
        threads: how many calls at once; all processors that this process may use if not given.

    Raises:
        ContractError: it is no model that ONNX Runtime can run.
    """

    name = "onnx"

    def __init__(self, model: Path | bytes, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ONLY_ERRORS
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        given = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(
                given, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises classes of its own for each kind of damage
            told = " ".join(str(error).split())[:200]
            raise ContractError(
                f"ONNX Runtime cannot run {_called(model)}: {told}; export the run again"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        served = [each.name for each in outputs][:1] == [
            LOGITS
        ]  # an export for a server has probabilities too
        if (
            len(inputs) != 1
            or not (len(outputs) == 1 or served)
            or inputs[0].type != "tensor(uint8)"
        ):
            found = [(each.name, each.type) for each in inputs]
            raise ContractError(
                f"{_called(model)} takes {found}, expected one input of uint8 pixels; export it again"
            )
        self._input, self._outputs = inputs[0].name, [outputs[0].name]
        told = self._session.get_modelmeta().custom_metadata_map.get(ROWS_PER_CALL, "")
        self._rows = int(told) if told.isascii() and told.isdigit() and int(told) else _ROWS
        self._threads = threads or processors()
        self._pool = ThreadPoolExecutor(self._threads, "nnbuild-infer")

    def shapes(self) -> tuple[tuple[int, int, int], int]:
        """Height, width and channels of an image, and how many logits it gets, as the file says.

        Raises:
            ContractError: the file leaves one of them open.
        """
        given, made = self._session.get_inputs()[0].shape, self._session.get_outputs()[0].shape
        sizes = [*given[1:], *made[1:]]
        if len(given) != 4 or len(made) != 2 or not all(isinstance(each, int) for each in sizes):  # noqa: PLR2004
            raise ContractError(
                f"the model takes {given} and gives {made}, expected sizes; export it again"
            )
        height, width, channels, classes = sizes
        return (height, width, channels), classes

    def logits(self, images: Pixels) -> Logits:
        """See `Engine`."""
        starts = range(0, len(images), self._rows)
        at_once = min(self._threads, len(starts))
        if at_once == 1:
            parts = self._run(images, starts)
        else:
            shared = iter(starts)  # each thread takes the next piece as soon as it is done with one
            of_threads = self._pool.map(lambda _: self._run(images, shared), range(at_once))
            parts = {start: part for some in of_threads for start, part in some.items()}
        logits: Logits = np.concatenate([parts[start] for start in starts])
        return logits.astype(np.float32, copy=False)

    def _run(self, images: Pixels, starts: Iterable[int]) -> dict[int, Logits]:
        return {
            start: self._session.run(
                self._outputs, {self._input: images[start : start + self._rows]}
            )[0]
            for start in starts
        }


def _called(model: Path | bytes) -> str:
    return "the exported model" if isinstance(model, bytes) else f"model {model}"
