"""Who watches a run besides Prefect: a terminal display may join without travelling through task parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, cast

from nnbuild.runtime.outward import Harmless
from nnbuild.training import ProgressCallback
from tasks.prefect_side import logger


class Display(ProgressCallback, Protocol):
    """Shows a run to a person."""

    def begin(self, step: str) -> None:
        """A step of the recipe begins."""

    def note(self, text: str) -> None:
        """Something to know about the run."""

    def download(self, file: str, done: int, total: int | None) -> None:
        """Bytes of a download are there."""

    def committed(self, run_id: str) -> None:
        """Take note that a run is committed, whatever becomes of its flow run."""


_displays: ContextVar[tuple[Display, ...]] = ContextVar("displays", default=())


@contextmanager
def shown_on(*displays: Display) -> Iterator[None]:
    """Let displays watch the runs in this block. One that fails is not shown anything more."""
    harmless = [Harmless(each, lambda text: logger().warning("%s", text)) for each in displays]
    token = _displays.set(cast("tuple[Display, ...]", tuple(harmless)))
    try:
        yield
    finally:
        _displays.reset(token)


def displays() -> tuple[Display, ...]:
    """The displays that watch now."""
    return _displays.get()
