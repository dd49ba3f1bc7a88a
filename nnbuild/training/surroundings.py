"""What a fit touches beside the model: who watches it, where its state is kept, what asks it to stop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from nnbuild.training.checkpoints import Checkpoints


class Watch(Protocol):
    """Who is told how the fit goes. Each call should be quick."""

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        """Some steps of an epoch (from 1) are done; the metrics are those of the epoch so far."""

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        """An epoch (from 1) is done."""


class Nobody:
    """Is told, and does nothing."""

    def step(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def epoch(self, *_: Any, **__: Any) -> None:
        """Nothing."""


@dataclass
class Surroundings:
    """What a fit touches beside the model; all of it may be left out.

    Attributes:
        watch: is told of steps and epochs.
        checkpoints: where the state is kept, and found again.
        checkpoint_seconds: a checkpoint within an epoch at every so many seconds.
        on_history: is given the history table after every epoch.
        stop: the number of the signal that asks to stop, or None; asked between calls.
        now: the time, aware.
        tensorboard: folder for TensorBoard's logs.
        callbacks: Keras callbacks of the caller's own.
    """

    watch: Watch | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_seconds: float = 30.0
    on_history: Callable[[Any], None] = lambda _: None
    stop: Callable[[], int | None] = lambda: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    tensorboard: str | None = None
    callbacks: Sequence[Any] = ()
