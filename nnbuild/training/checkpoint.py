"""Checkpoints of a fit: written atomically, verified by digest when read, and the last two kept.

A checkpoint is two files: `NUMBER.npz` with the arrays, and `NUMBER.json` with everything else and
the digest of the arrays. The JSON is written last, so that the arrays that it names are complete.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.errors import StoreError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.tensorflow import keras, tf
from nnbuild.store.filesystem import file_digest, read_json, write_bytes, write_json

_KEPT = 2
_DAMAGE = (StoreError, OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


@dataclass
class Checkpoint:
    """State of a fit.

    Attributes:
        epoch: Current or next epoch, from 0.
        step: Number of finished steps of the epoch.
        seconds: Seconds spent on the epoch so far.
        stopping: Whether a callback has asked to stop.
        history: Keras's `History.history` so far.
        epochs: Keras's `History.epoch` so far.
        rows: Rows of the history table so far.
        callbacks: Numbers of the state of each callback.
        identity: Configuration, dataset, code and others that a resumed fit must share.
        arrays: Weights and all other arrays, by name.
    """

    epoch: int
    step: int
    seconds: float
    stopping: bool
    history: dict[str, list[float]]
    epochs: list[int]
    rows: list[dict[str, Any]]
    callbacks: list[dict[str, Any]]
    identity: dict[str, Any]
    arrays: dict[str, Any] = field(repr=False)


class Checkpoints:
    """Checkpoints of one fit.

    Args:
        folder: Folder of the checkpoints.
        identity: Configuration, dataset, code, threads and processor of the fit, as JSON values.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self.identity = identity

    def save(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint and remove all but the last two."""
        numbers = self._numbers()
        name = f"{max(numbers, default=0) + 1:08d}"
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **checkpoint.arrays)
        fault_injection.failpoint("checkpoint:begin")
        write_bytes(self._folder / f"{name}.npz", buffer.getvalue())
        fault_injection.failpoint("checkpoint:arrays")
        rest = {key: value for key, value in vars(checkpoint).items() if key != "arrays"}
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        # As text within the JSON: NaN in a history survives, and the digest covers every byte.
        text = json.dumps(rest)
        write_json(
            self._folder / f"{name}.json",
            {
                "arrays": digest,
                "rest": text,
                "rest_digest": hashlib.sha256(text.encode()).hexdigest(),
            },
        )
        fault_injection.failpoint("checkpoint:end")
        for old in numbers[: 1 - _KEPT]:
            for ending in ("json", "npz"):
                (self._folder / f"{old:08d}.{ending}").unlink(missing_ok=True)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that is intact, and remarks.

        Returns:
            The checkpoint, or None if there is none; and a remark on each damaged checkpoint, and
            on each difference that may change the last digits of the result.

        Raises:
            StoreError: The checkpoint belongs to another configuration, dataset or code.
        """
        remarks = []
        for number in reversed(self._numbers()):
            try:
                checkpoint = self._read(f"{number:08d}")
            except _DAMAGE as error:
                remarks.append(
                    f"checkpoint {number} is damaged ({error}); the one before it is used"
                )
                continue
            remarks.extend(self._differences(checkpoint.identity))
            return checkpoint, remarks
        return None, remarks

    def _read(self, name: str) -> Checkpoint:
        record = read_json(self._folder / f"{name}.json", most=1 << 30)
        rest = str(record["rest"])
        if hashlib.sha256(rest.encode()).hexdigest() != record["rest_digest"]:
            raise ValueError("its description has changed")
        path = self._folder / f"{name}.npz"
        if file_digest(path) != record["arrays"]:
            raise ValueError("its arrays have changed")
        with np.load(path, allow_pickle=False) as arrays:
            return Checkpoint(**json.loads(rest), arrays=dict(arrays))

    def _numbers(self) -> list[int]:
        names = (path.stem for path in self._folder.glob("*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def _differences(self, identity: dict[str, Any]) -> list[str]:
        """Refuse a checkpoint of another fit, and return remarks on smaller differences."""
        for name in ("config", "dataset", "code", "model"):
            if identity.get(name) != self.identity.get(name):
                raise StoreError(
                    f"the checkpoint belongs to another {name} ({identity.get(name)}), expected "
                    f"{self.identity.get(name)}; resume with the {name} that the run was begun "
                    "with, or begin a new run"
                )
        return [
            f"{name} was {value} and is {self.identity.get(name)}: "
            "the result may differ in the last digits"
            for name, value in identity.items()
            if value != self.identity.get(name)
        ]


def _variables(model: keras.Model, used: Sequence[tf.Variable] = ()) -> dict[str, tf.Variable]:
    """Return the variables of a model, its metrics and its optimizer by name.

    Variables that only its steps use are included, such as a counter, or a metric that the model
    does not list.
    """
    groups = {
        "model": model.variables,
        "metric": model.metrics_variables,
        "optimizer": model.optimizer.variables,
    }
    known = {id(each.value) for variables in groups.values() for each in variables}
    groups["other"] = [each for each in used if id(each) not in known]
    return {
        f"{group}/{index}": variable
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }


def model_arrays(model: keras.Model, used: Sequence[tf.Variable] = ()) -> dict[str, NDArray[Any]]:
    """Copy the state of a compiled model, its optimizer and its metrics.

    Args:
        model: Compiled model.
        used: Variables that its steps use, see `nnbuild.training.loop.CompiledLoop.trace_train`.

    Returns:
        Arrays by name.
    """
    return {name: np.array(each.numpy()) for name, each in _variables(model, used).items()}


def restore_model(
    model: keras.Model, arrays: dict[str, NDArray[Any]], used: Sequence[tf.Variable] = ()
) -> None:
    """Restore the state of a model; modifies `model` in place.

    Args:
        model: As for `model_arrays`.
        arrays: Result of `model_arrays`.
        used: As for `model_arrays`.

    Raises:
        StoreError: The arrays do not have the names or shapes of the model's.
    """
    variables = _variables(model, used)
    for name, variable in variables.items():
        array = arrays.get(name)
        if array is None or array.shape != tuple(variable.shape):
            problem = "no array" if array is None else f"an array of shape {array.shape}"
            raise StoreError(
                f"the checkpoint has {problem} for {name}, expected shape {tuple(variable.shape)}; "
                "begin a new run"
            )
    for name, variable in variables.items():
        variable.assign(tf.convert_to_tensor(arrays[name], variable.dtype))
