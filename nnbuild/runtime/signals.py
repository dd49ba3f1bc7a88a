"""Handle Ctrl-C and SIGTERM: deferred between the steps of a fit, raised everywhere else."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from nnbuild.errors import Interrupted, NnbuildError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SigtermReceived(KeyboardInterrupt):
    """SIGTERM was received; like Ctrl-C, it is not caught by `except Exception`."""


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Handle signals in the block, and restore the previous handlers afterwards."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            # None means that the handler was not installed from Python.
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)


def interrupted(error: KeyboardInterrupt) -> Interrupted:
    """Return the error that a command raises after Ctrl-C or SIGTERM."""
    number = int(signal.SIGTERM if isinstance(error, SigtermReceived) else signal.SIGINT)
    return Interrupted(f"stopped by signal {number}", number)


def request_to_stop(error: BaseException) -> KeyboardInterrupt | None:
    """Return the Ctrl-C or SIGTERM during whose handling an error was raised; None without one.

    Prefect's engine fails with an error of its own if it is stopped before it knows its task run.
    Errors of nnbuild are not looked into: they say what happened.
    """
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, NnbuildError):
        if isinstance(behind, KeyboardInterrupt):
            return behind
        behind = behind.__context__
    return None


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Raise `SigtermReceived` on SIGTERM in the block; outside the main thread, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_exception(_number: int, _frame: FrameType | None) -> None:
        raise SigtermReceived

    with _handled_by(raise_exception, signal.SIGTERM):
        yield


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Defer Ctrl-C and SIGTERM for the duration of the block.

    A second Ctrl-C raises `KeyboardInterrupt` immediately.

    Yields:
        A function that returns the number of the signal that was received, or None. Outside the
        main thread, where Python receives no signals, it always returns None.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def record(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        received.append(number)

    with _handled_by(record, *_STOP_SIGNALS):
        yield lambda: received[0] if received else None


@contextmanager
def exiting_at_once(before_exit: Callable[[int], None]) -> Iterator[None]:
    """Exit immediately on Ctrl-C and SIGTERM in the block, where there is nothing to save yet.

    An exception in the middle of an import could be swallowed, or leave a module incomplete.

    Args:
        before_exit: Function that receives the exit code, 128 + the number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def exit_process(number: int, _frame: FrameType | None) -> None:
        before_exit(128 + number)
        os._exit(128 + number)

    with _handled_by(exit_process, *_STOP_SIGNALS):
        yield


@contextmanager
def children_spared_ctrl_c() -> Iterator[None]:
    """Keep Ctrl-C in a terminal from the processes that this thread starts in the block.

    The terminal signals the whole process group. A child inherits the signals that its parent
    blocks, so the signal is blocked here and received by a thread that only waits; Python still
    runs the handler in the main thread.
    """
    finished = threading.Event()

    def receive() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        finished.wait()

    threading.Thread(target=receive, name="ctrl-c", daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finished.set()


GRACE = 30.0
"""Seconds between the request to stop and the kill of `hard_timeout`."""


class _Timeout:
    """A time limit that can be stopped and started again with the time that is left."""

    def __init__(self, seconds: float, grace: float) -> None:
        self._left, self._grace = seconds, grace
        self._end = 0.0
        self._request = threading.Timer(0, lambda: None)

    def start(self) -> None:
        """Start the time, or let it continue."""
        self._end = time.monotonic() + self._left
        self._request = threading.Timer(self._left, os.kill, (os.getpid(), signal.SIGTERM))
        self._request.daemon = True
        self._request.start()
        signal.setitimer(signal.ITIMER_REAL, self._left + self._grace)

    def stop(self) -> None:
        """Stop the time."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._request.cancel()
        self._left = max(0.0, self._end - time.monotonic())


_timeouts: list[_Timeout] = []
"""The time limits of this process that are in force; only the last one has its timers running."""


@contextmanager
def hard_timeout(seconds: float | None, *, grace: float = GRACE) -> Iterator[None]:
    """Send SIGTERM to the process after a time, and let the kernel kill it after a grace period.

    A fit reacts to SIGTERM with a checkpoint. The kill is SIGALRM with its default action, which
    works even if a library hangs or holds the interpreter lock.

    Args:
        seconds: Seconds until SIGTERM; None for no limit.
        grace: Seconds from SIGTERM to the kill.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    timeout = _Timeout(seconds, grace)
    timeout.start()
    _timeouts.append(timeout)
    try:
        yield
    finally:
        _timeouts.remove(timeout)
        timeout.stop()
        signal.signal(signal.SIGALRM, before)


@contextmanager
def timeout_stopped() -> Iterator[None]:
    """Stop the time of `hard_timeout` in the block, because the run waits for a person."""
    timeout = _timeouts[-1] if _timeouts else None
    if timeout is None:
        yield
        return
    timeout.stop()
    try:
        yield
    finally:
        timeout.start()
