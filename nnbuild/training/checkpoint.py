"""Checkpoints on the disk: written aside and moved, verified by digest when read, the last two kept.

A checkpoint is a folder entry of two files: `NUMBER.npz` with the arrays and `NUMBER.json` with the rest and
the digest of the arrays. The JSON is moved into place last, so that what it names is whole.
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

from nnbuild.errors import StoreError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.tensorflow import tf
from nnbuild.store.filesystem import file_digest, read_json, write_bytes, write_json

_KEPT = 2


@dataclass
class Checkpoint:
    """A moment of a fit.

    Attributes:
        epoch: from 0, the one that is next or under way.
        step: steps of it that are done.
        seconds: spent on it so far.
        stopping: whether a callback has asked to stop.
        history: Keras's `History.history` so far.
        epochs: Keras's `History.epoch` so far.
        rows: of the history table so far.
        callbacks: the callbacks' numbers.
        arrays: everything that is an array, by name.
        identity: what the checkpoint belongs to.
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
    """The checkpoints of one run.

    Args:
        folder: where they lie.
        identity: what they belong to: config, dataset, code, threads and processor. JSON values.
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
        # As text within the JSON, so that NaN in a history survives and the digest covers every byte.
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
        """The newest checkpoint that is whole, and a remark on each that is not.

        Raises:
            StoreError: the checkpoint belongs to another config, dataset or code.
        """
        remarks = []
        for number in reversed(self._numbers()):
            try:
                checkpoint = self._read(f"{number:08d}")
            except (
                StoreError,
                OSError,
                ValueError,
                KeyError,
                TypeError,
                zipfile.BadZipFile,
            ) as error:
                remarks.append(
                    f"checkpoint {number} is damaged ({error}); the one before it is used"
                )
                continue
            remarks.extend(self._differences(checkpoint.identity))
            return checkpoint, remarks
        return None, remarks

    def _read(self, name: str) -> Checkpoint:
        kept = read_json(self._folder / f"{name}.json", most=1 << 30)
        rest = str(kept["rest"])
        if hashlib.sha256(rest.encode()).hexdigest() != kept["rest_digest"]:
            raise ValueError("its description was changed")
        path = self._folder / f"{name}.npz"
        if file_digest(path) != kept["arrays"]:
            raise ValueError("its arrays were changed")
        with np.load(path, allow_pickle=False) as arrays:
            return Checkpoint(**json.loads(rest), arrays=dict(arrays))

    def _numbers(self) -> list[int]:
        names = (path.stem for path in self._folder.glob("*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def _differences(self, found: dict[str, Any]) -> list[str]:
        """Refuse what must agree; remark on what only makes exactness uncertain."""
        for name in ("config", "dataset", "code", "model"):
            if found.get(name) != self.identity.get(name):
                raise StoreError(
                    f"the checkpoint belongs to another {name} ({found.get(name)}), this run has "
                    f"{self.identity.get(name)}; resume with what it was begun with, or begin a new run"
                )
        return [
            f"{name} was {found[name]} and is {self.identity.get(name)}: the result may differ in the last digits"
            for name in found
            if found[name] != self.identity.get(name)
        ]


def _variables(model: Any, used: Sequence[Any] = ()) -> dict[str, Any]:
    """Weights and seed generators, running metrics, and the optimizer with its step and learning rate.

    And what else the steps use: a metric that a custom step updates without listing it, a counter.
    """
    groups = {
        "model": model.variables,
        "metric": model.metrics_variables,
        "optimizer": model.optimizer.variables,
    }
    known = {id(each.value) for held in groups.values() for each in held}
    groups["other"] = [each for each in used if id(each) not in known]
    return {
        f"{group}/{index}": variable
        for group, held in groups.items()
        for index, variable in enumerate(held)
    }


def model_arrays(model: Any, used: Sequence[Any] = ()) -> dict[str, Any]:
    """Copy the state of a compiled model, its optimizer and its metrics.

    Args:
        model: Compiled model.
        used: TensorFlow variables that its steps use, see `Steps.trace_train`.
    """
    return {name: np.array(each.numpy()) for name, each in _variables(model, used).items()}


def restore_model(model: Any, arrays: dict[str, Any], used: Sequence[Any] = ()) -> None:
    """Put a state back; modifies `model` in place.

    Args:
        model: As for `model_arrays`.
        arrays: What `model_arrays` returned.
        used: As for `model_arrays`.

    Raises:
        StoreError: the arrays are not those of such a model.
    """
    variables = _variables(model, used)
    for name, variable in variables.items():
        found = arrays.get(name)
        if found is None or found.shape != tuple(variable.shape):
            given = "nothing" if found is None else f"shape {found.shape}"
            raise StoreError(
                f"the checkpoint has {given} for {name}, expected {tuple(variable.shape)}; begin a new run"
            )
    for name, variable in variables.items():
        variable.assign(tf.convert_to_tensor(arrays[name], variable.dtype))
