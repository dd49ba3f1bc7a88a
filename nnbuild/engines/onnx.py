"""The default engine for scoring: ONNX Runtime, without TensorFlow."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from nnbuild.engines import Logits, Pixels
from nnbuild.engines.onnx_file import refuse_external_data
from nnbuild.errors import ContractError, one_line
from nnbuild.runtime.environment import processors

# From 1.29 on it sends names and hashes of models to Microsoft, and keeps a database in the user's
# cache. The thread that does so would be missing in processes that are forked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # it reads the variable

LOGITS = "logits"
ROWS_PER_CALL = "nnbuild.rows_per_call"
"""Key in the metadata of a model: the fastest number of images per call."""

_DEFAULT_ROWS = 256
_NO_LOG = 4  # errors are raised; the log would only repeat them
_CHANNELS = (1, 3, 4)
_MAX_IMAGE_VALUES = 2**26
_MAX_CLASSES = 2**15  # a class is an int16 in the tables
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_MAX_SHOWN = 300
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


class OnnxEngine:
    """Engine that runs an exported model: few images per call, and one call per thread at a time.

    Threads within a call would wait for each other at every layer: on two processors that makes a
    convolutional network a fifth slower. The split of a batch into calls does not depend on the
    number of threads, so the logits do not either.

    A model with a fixed batch size gets exactly that number of images per call; the last call is
    padded with zeros.

    Args:
        model: Path of a `.onnx` file, or its content.
        threads: Number of parallel calls; all processors that this process may use if not given.
        name: Name of the model for messages.

    Attributes:
        metadata: Texts in the metadata of the file, by key.

    Raises:
        ContractError: ONNX Runtime cannot run the model, or its input is not pixels, or its output
            is not logits.
    """

    name = "onnx"

    def __init__(
        self, model: Path | bytes, threads: int | None = None, *, name: str | None = None
    ) -> None:
        self._name = name or _default_name(model)
        content = model if isinstance(model, bytes) else model.read_bytes()
        refuse_external_data(content, self._name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _NO_LOG
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.enable_mem_pattern = False  # the pattern takes as much again, and no call is faster
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has its own exception for each kind of damage
            raise ContractError(
                f"ONNX Runtime cannot run {self._name}: "
                f"{_reason(error)}; export it for ONNX Runtime {onnxruntime.__version__}"
            ) from error
        self._input, self._output = self._pixels(), self._logits()
        self._fixed = self._batch()
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        fastest = self.metadata.get(ROWS_PER_CALL, "")
        known = re.fullmatch("[1-9][0-9]{0,6}", fastest)
        self._rows = self._fixed or (int(fastest) if known else _DEFAULT_ROWS)
        self._threads = threads or processors()
        self._pool = ThreadPoolExecutor(self._threads, "nnbuild-infer")

    def _pixels(self) -> onnxruntime.NodeArg:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)":
            actual = ", ".join(f"{each.name}: {each.type}" for each in inputs) or "nothing"
            raise ContractError(
                f"{self._name} takes {actual[:_MAX_SHOWN]}; expected one input of uint8 pixels: "
                "include casting and rescaling in the model when exporting it"
            )
        return inputs[0]

    def _logits(self) -> onnxruntime.NodeArg:
        outputs = self._session.get_outputs()
        # Exports for servers output probabilities as well, after the logits.
        if len(outputs) != 1 and outputs[0].name != LOGITS:
            names = ", ".join(each.name for each in outputs)
            raise ContractError(
                f"{self._name} outputs {names[:_MAX_SHOWN]}; expected one output of logits, or "
                f"a first output named {LOGITS!r}"
            )
        if outputs[0].type not in _FLOATS:
            raise ContractError(
                f"{self._name} outputs {outputs[0].name}: {outputs[0].type}; expected logits, "
                "floats of shape (n, classes)"
            )
        return outputs[0]

    def _batch(self) -> int | None:
        """Return the batch size of the model if it is fixed."""
        if not self._input.shape or not self._output.shape:
            return None  # refused by `shapes`
        images, rows = self._input.shape[0], self._output.shape[0]
        if not isinstance(images, int):
            return None
        if images < 1 or (isinstance(rows, int) and rows != images):
            raise ContractError(
                f"{self._name} takes {images} images per call and outputs {rows} rows; "
                "export it with a dynamic batch size"
            )
        return images

    def shapes(self) -> tuple[tuple[int, int, int], int]:
        """Return height, width and channels of an image, and the number of classes.

        Raises:
            ContractError: The file does not specify one of them, or they are not those of an image
                classifier.
        """
        images, logits = self._input.shape, self._output.shape
        if len(images) != 4 or len(logits) != 2:
            raise ContractError(
                f"{self._name} takes {images} and outputs {logits}; expected "
                "(n, height, width, channels) and (n, classes)"
            )
        if not all(isinstance(each, int) for each in (*images[1:], logits[1])):
            raise ContractError(
                f"{self._name} takes {images} and outputs {logits}; expected numbers for height, "
                "width, channels and classes: export it with fixed sizes and a dynamic batch size"
            )
        (height, width, channels), classes = images[1:], logits[1]
        if height in _CHANNELS and channels not in _CHANNELS:
            raise ContractError(
                f"{self._name} takes {images}, which has the channels first; expected "
                "(n, height, width, channels): transpose inside the model when exporting it"
            )
        if not 0 < height * width * channels <= _MAX_IMAGE_VALUES or min(images[1:]) < 1:
            raise ContractError(
                f"{self._name} takes {images}; expected at most {_MAX_IMAGE_VALUES} "
                "values per image"
            )
        if not 2 <= classes <= _MAX_CLASSES:
            raise ContractError(
                f"{self._name} outputs {classes} values per image; expected one logit per class, "
                f"2 to {_MAX_CLASSES}"
            )
        return (height, width, channels), classes

    def probe(self) -> None:
        """Check that the model runs, with two batches of black images.

        Raises:
            ContractError: It does not run, or not with batches of different sizes.
        """
        shape, classes = self.shapes()
        for rows in (1, 2):
            logits = self.logits(np.zeros((rows, *shape), np.uint8))
            if logits.shape != (rows, classes):
                raise ContractError(
                    f"{self._name} outputs {logits.shape} for {rows} images, expected "
                    f"({rows}, {classes}); export it with a dynamic batch size"
                )

    def logits(self, images: Pixels) -> Logits:
        """Compute the logits of a batch, see `Engine`.

        Raises:
            ContractError: ONNX Runtime cannot run the model on these images.
        """
        starts = range(0, len(images), self._rows)
        calls = min(self._threads, len(starts))
        if calls == 1:
            parts = self._run(images, starts)
        else:
            shared = iter(starts)  # each thread takes the next part when it has finished one
            by_thread = self._pool.map(lambda _: self._run(images, shared), range(calls))
            parts = {start: part for some in by_thread for start, part in some.items()}
        logits: Logits = np.concatenate([parts[start] for start in starts])
        return logits.astype(np.float32, copy=False)

    def _run(self, images: Pixels, starts: Iterable[int]) -> dict[int, Logits]:
        try:
            return {start: self._part(images[start : start + self._rows]) for start in starts}
        except Exception as error:  # ONNX Runtime has its own exception for each kind of failure
            if isinstance(error, MemoryError) or any(each in str(error) for each in _OUT_OF_MEMORY):
                raise MemoryError(_reason(error)) from error
            raise ContractError(
                f"ONNX Runtime cannot run {self._name} on {len(images)} images: "
                f"{_reason(error)}; export it with a dynamic batch size, or give another model"
            ) from error

    def _part(self, images: Pixels) -> Logits:
        count = len(images)
        if self._fixed and count < self._fixed:
            images = np.pad(images, ((0, self._fixed - count), (0, 0), (0, 0), (0, 0)))
        logits: Logits = self._session.run([self._output.name], {self._input.name: images})[0]
        return logits[:count] if self._fixed else logits


@cache
def _register_arena() -> None:
    """Register memory for the models of this process that grows by what they need.

    By default it grows by powers of two, and a process holds up to twice what a call needs.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    as_requested = onnxruntime.OrtArenaCfg(0, 1, -1, -1)  # 0 and -1: the defaults of the rest
    onnxruntime.create_and_register_allocator(memory, as_requested)


def _default_name(model: Path | bytes) -> str:
    return "the exported model" if isinstance(model, bytes) else f"model {model}"


def _reason(error: Exception) -> str:
    """Return the message of ONNX Runtime without its codes and places in its source."""
    message = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error))
    message = re.sub(r"^(/\S+\.(cc|h|cpp):\d+ )?[^\s(]*(::|\s)[^()]*\(.*?\) (?=[A-Z])", "", message)
    if len(message) > 2 * _MAX_SHOWN:
        message = f"{message[:_MAX_SHOWN]} … {message[-_MAX_SHOWN:]}"
    return message.rstrip(". ")
