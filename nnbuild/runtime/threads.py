"""Work in threads: a pipeline stage ahead of its consumer, and calls that wait in parallel."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
STAGE = "nnbuild-stage"
SECONDS_TO_LET_GO = 1.0
"""How long to wait at a stop for a stage that is busy with an item, such as an import."""
_END = object()
_SAMPLE = 16


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
        _join(thread, timeout)


def _join(thread: threading.Thread, timeout: float | None) -> None:
    """Wait for a thread, unless it is this one, which has collected an abandoned iterator."""
    if thread is not threading.current_thread():
        thread.join(timeout)


def in_threads_if_waiting(
    function: Callable[[T], R], items: Iterable[T], threads: int
) -> Iterator[R]:
    """Yield the result of a function for each item, in order, as `in_threads` does if calls wait.

    Files on a disk of this machine are mostly in memory: with several threads that contend for the
    interpreter lock, opening them took twice as long.
    """
    remaining = iter(items)
    passed = worked = 0.0
    for each in islice(remaining, _SAMPLE):
        began, began_work = time.perf_counter(), time.thread_time()
        result = function(each)
        passed += time.perf_counter() - began
        worked += time.thread_time() - began_work
        yield result
    yield from in_threads(function, remaining, threads if passed > 2 * worked else 1)


def in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield the result of a function for each item, in order, with several calls at a time.

    It is for calls that wait, such as requests to a server.

    Args:
        function: Function to call.
        items: Its arguments.
        threads: Number of calls at a time; with 1 the calls are made in this thread. At most twice
            as many results, and one, wait to be taken.

    Raises:
        Exception: A call failed; the error is raised where its result would be yielded.
    """
    if threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, "nnbuild-wait")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
