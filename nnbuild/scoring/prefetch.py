"""Pipeline stages that overlap: each runs in a thread, a few items ahead of its consumer."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
STAGE = "nnbuild-stage"
SECONDS_TO_LET_GO = 1.0
"""How long to wait at a stop for a stage that is busy with an item, such as an import."""
_END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """Yield the same items, computed in a background thread while earlier ones are consumed.

    Args:
        items: Iterable that computes an item at a time.
        depth: Maximum number of items that wait to be consumed; it bounds the memory.

    Raises:
        Exception: Computing an item failed; the error is raised where the item would be yielded.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    abandoned = threading.Event()

    def put(item: Any) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001  (raised again by the consumer)
            put(_Failure(error))

    thread = threading.Thread(target=produce, name=STAGE, daemon=True)
    thread.start()
    timeout: float | None = SECONDS_TO_LET_GO
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
        timeout = None
    finally:
        abandoned.set()
        thread.join(timeout)
