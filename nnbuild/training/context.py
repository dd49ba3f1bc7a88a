"""What a fit uses besides the model and the data, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from nnbuild.runtime.progress import ProgressCallback
from nnbuild.runtime.tensorflow import keras
from nnbuild.training.checkpoint import Checkpoints


@dataclass
class FitContext:
    """Optional surroundings of a fit.

    Attributes:
        progress: Callback for finished steps and epochs.
        checkpoints: Checkpoints to resume from and to add to.
        checkpoint_seconds: Seconds between checkpoints within an epoch.
        on_history: Function that gets the history table so far after every epoch.
        stop: Function that returns the number of the signal that asks to stop, or None; it is
            called between compiled calls.
        now: Function that returns the aware current time.
        tensorboard: Folder for TensorBoard's logs.
        callbacks: Further Keras callbacks.
    """

    progress: ProgressCallback | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_seconds: float = 30.0
    on_history: Callable[[pa.Table], None] = lambda _: None
    stop: Callable[[], int | None] = lambda: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    tensorboard: str | None = None
    callbacks: Sequence[keras.callbacks.Callback] = ()


@dataclass(frozen=True)
class Fitted:
    """Result of a fit.

    Attributes:
        history: Keras's History; `history.history` has a list for each metric.
        table: The same as a table with the schema of `history`.
        weights_epoch: Epoch, from 1, whose weights the model has now.
        remarks: Remarks on how the fit was resumed.
    """

    history: keras.callbacks.History
    table: pa.Table
    weights_epoch: int
    remarks: tuple[str, ...]
