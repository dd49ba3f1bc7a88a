"""Stages that overlap: each runs in a thread of its own, a few items ahead of the one that it feeds."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
STAGE = "nnbuild-stage"
SECONDS_TO_LET_GO = 1.0
"""How long a stop waits for a stage that is in the middle of an item, such as an import."""
_END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """The same items, made in a thread of their own while earlier ones are used.

    Args:
        items: made one after the other.
        depth: how many may wait; it bounds the memory.

    Raises:
        Exception: whatever making an item raised, at its place in the order.
    """
    waiting: queue.Queue[Any] = queue.Queue(depth)
    abandoned = threading.Event()

    def hand_over(item: Any) -> bool:
        while not abandoned.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not hand_over(item):
                    return
            hand_over(_END)
        except BaseException as error:  # noqa: BLE001  (it is raised again where the items are used)
            hand_over(_Failure(error))

    thread = threading.Thread(target=work, name=STAGE, daemon=True)
    thread.start()
    patience: float | None = SECONDS_TO_LET_GO
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
        patience = None
    finally:
        abandoned.set()
        thread.join(patience)
