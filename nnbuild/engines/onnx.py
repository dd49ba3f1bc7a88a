"""The engine that scores: ONNX Runtime, without TensorFlow."""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from nnbuild.engines import Logits, Pixels
from nnbuild.engines.onnx_file import refuse_external_data
from nnbuild.errors import ContractError, one_line
from nnbuild.runtime.environment import processors

LOGITS = "logits"
ROWS_PER_CALL = "nnbuild.rows_per_call"
"""In a model's metadata: how many images it runs at once the fastest."""

_ROWS = 256
_NO_LOG = 4  # what goes wrong is raised; its log would be more lines of the same
_CHANNELS = (1, 3, 4)
_MOST_PIXELS = 2**26
_MOST_CLASSES = 2**15  # a class is an int16 in the tables
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_MOST_SHOWN = 300


class OnnxEngine:
    """Runs an exported model: a few images a call, and so many calls at once as there are threads.

    Threads inside one call would wait for each other at every layer: on two processors a convolutional network is a
    fifth slower with them. And how a batch is cut does not depend on the threads, so that its logits do not either.

    A model whose batch was fixed when it was exported gets exactly so many images a call; the last
    call is filled up with zeros.

    Args:
        model: Path of a `.onnx` file, or its bytes.
        threads: Number of calls at once; all processors that this process may use if not given.
        name: What the model is called in messages.

    Raises:
        ContractError: ONNX Runtime cannot run it, or it does not take pixels and give logits.
    """

    name = "onnx"

    def __init__(
        self, model: Path | bytes, threads: int | None = None, *, name: str | None = None
    ) -> None:
        self._called = name or _called(model)
        content = model if isinstance(model, bytes) else model.read_bytes()
        refuse_external_data(content, self._called)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _NO_LOG
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises classes of its own for each kind of damage
            raise ContractError(
                f"ONNX Runtime cannot run {self._called}: "
                f"{_reason(error)}; export it for ONNX Runtime {onnxruntime.__version__}"
            ) from error
        self._input, self._output = self._pixels(), self._logits()
        self._fixed = self._batch()
        fastest = self._session.get_modelmeta().custom_metadata_map.get(ROWS_PER_CALL, "")
        known = re.fullmatch("[1-9][0-9]{0,6}", fastest)
        self._rows = self._fixed or (int(fastest) if known else _ROWS)
        self._threads = threads or processors()
        self._pool = ThreadPoolExecutor(self._threads, "nnbuild-infer")

    def _pixels(self) -> Any:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)":
            found = ", ".join(f"{each.name}: {each.type}" for each in inputs) or "nothing"
            raise ContractError(
                f"{self._called} takes {found[:_MOST_SHOWN]}; expected one input of uint8 pixels: "
                "put casting and rescaling into the model when it is exported"
            )
        return inputs[0]

    def _logits(self) -> Any:
        outputs = self._session.get_outputs()
        # An export for a server has probabilities too, after the logits.
        if len(outputs) != 1 and outputs[0].name != LOGITS:
            names = ", ".join(each.name for each in outputs)
            raise ContractError(
                f"{self._called} gives {names[:_MOST_SHOWN]}; expected one output of logits, or "
                f"a first one that is called {LOGITS!r}"
            )
        if outputs[0].type not in _FLOATS:
            raise ContractError(
                f"{self._called} gives {outputs[0].name}: {outputs[0].type}; expected logits, "
                "floats of shape (n, classes)"
            )
        return outputs[0]

    def _batch(self) -> int | None:
        """Return the number of images that the model takes at once, if that is fixed."""
        if not self._input.shape or not self._output.shape:
            return None  # which `shapes` refuses
        given, made = self._input.shape[0], self._output.shape[0]
        if not isinstance(given, int):
            return None
        if given < 1 or (isinstance(made, int) and made != given):
            raise ContractError(
                f"{self._called} takes {given} images at once and gives {made} rows; "
                "export it with a free batch"
            )
        return given

    def shapes(self) -> tuple[tuple[int, int, int], int]:
        """Return height, width and channels of an image and its number of logits, from the file.

        Raises:
            ContractError: The file leaves one of them open, or they are not those of a classifier
                of images.
        """
        given, made = self._input.shape, self._output.shape
        if len(given) != 4 or len(made) != 2:  # noqa: PLR2004
            raise ContractError(
                f"{self._called} takes {given} and gives {made}; expected "
                "(n, height, width, channels) and (n, classes)"
            )
        if not all(isinstance(each, int) for each in (*given[1:], made[1])):
            raise ContractError(
                f"{self._called} takes {given} and gives {made}; expected numbers for height, "
                "width, channels and classes: export it with fixed sizes and a free batch"
            )
        (height, width, channels), classes = given[1:], made[1]
        if height in _CHANNELS and channels not in _CHANNELS:
            raise ContractError(
                f"{self._called} takes {given}, which has the channels first; expected "
                "(n, height, width, channels): transpose inside the model when it is exported"
            )
        if not 0 < height * width * channels <= _MOST_PIXELS or min(given[1:]) < 1:
            raise ContractError(
                f"{self._called} takes {given}; expected at most {_MOST_PIXELS} numbers an image"
            )
        if not 2 <= classes <= _MOST_CLASSES:  # noqa: PLR2004
            raise ContractError(
                f"{self._called} gives {classes} values an image; expected one logit a class, "
                f"2 to {_MOST_CLASSES}"
            )
        return (height, width, channels), classes

    def probe(self) -> None:
        """Run two batches of empty images, to find out whether the model runs at all.

        Raises:
            ContractError: It does not, or not for batches of any size.
        """
        shape, classes = self.shapes()
        for rows in (1, 2):
            found = self.logits(np.zeros((rows, *shape), np.uint8))
            if found.shape != (rows, classes):
                raise ContractError(
                    f"{self._called} gives {found.shape} for {rows} images, expected "
                    f"({rows}, {classes}); export it with a free batch"
                )

    def logits(self, images: Pixels) -> Logits:
        """See `Engine`.

        Raises:
            ContractError: ONNX Runtime cannot run the model on these images.
        """
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
        try:
            return {start: self._piece(images[start : start + self._rows]) for start in starts}
        except (
            Exception
        ) as error:  # ONNX Runtime raises classes of its own for each kind of failure
            raise ContractError(
                f"ONNX Runtime cannot run {self._called} on {len(images)} images: "
                f"{_reason(error)}; export it with a free batch, or give another model"
            ) from error

    def _piece(self, images: Pixels) -> Logits:
        count = len(images)
        if self._fixed and count < self._fixed:
            images = np.pad(images, ((0, self._fixed - count), (0, 0), (0, 0), (0, 0)))
        logits: Logits = self._session.run([self._output.name], {self._input.name: images})[0]
        return logits[:count] if self._fixed else logits


def _called(model: Path | bytes) -> str:
    return "the exported model" if isinstance(model, bytes) else f"model {model}"


def _reason(error: Exception) -> str:
    """Return what ONNX Runtime says, without its codes and the places in its source."""
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error))
    said = re.sub(r"^(/\S+\.(cc|h|cpp):\d+ )?[^\s(]*(::|\s)[^()]*\(.*?\) (?=[A-Z])", "", said)
    if len(said) > 2 * _MOST_SHOWN:
        said = f"{said[:_MOST_SHOWN]} … {said[-_MOST_SHOWN:]}"
    return said.rstrip(". ")
