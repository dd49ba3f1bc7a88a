"""Ctrl-C and SIGTERM: heard between the steps of a fit, and torn out of anything else."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from nnbuild.errors import Interrupted

_HEARD = (signal.SIGINT, signal.SIGTERM)


class SigtermReceived(KeyboardInterrupt):
    """SIGTERM, which tears out of a block as Ctrl-C does, through every `except Exception`."""


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Handle signals in this block, and restore what handled them before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)


def interrupted(error: KeyboardInterrupt) -> Interrupted:
    """Return what a command raises after Ctrl-C or SIGTERM has interrupted its work."""
    number = int(signal.SIGTERM if isinstance(error, SigtermReceived) else signal.SIGINT)
    return Interrupted(f"stopped by signal {number}", number)


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Let SIGTERM raise `SigtermReceived` in this block; outside the main thread, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tear(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise SigtermReceived

    with _handled_by(tear, signal.SIGTERM):
        yield


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Hold the signals that ask to stop for as long as the block runs.

    Yields:
        A function that gives the number of the signal that has arrived, or None. A second Ctrl-C raises
        `KeyboardInterrupt` at once. Outside the main thread, where Python hears no signals, always None.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if arrived and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        arrived.append(number)

    with _handled_by(hear, *_HEARD):
        yield lambda: arrived[0] if arrived else None


@contextmanager
def exiting_at_once(before_exit: Callable[[int], None]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process in this block, where there is nothing to save yet.

    An exception that is raised in the middle of an import can be swallowed, or leave half a module.

    Args:
        before_exit: Called with the exit code, 128 + the signal's number, to say so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        before_exit(128 + number)
        os._exit(128 + number)

    with _handled_by(leave, *_HEARD):
        yield


@contextmanager
def children_spared_ctrl_c() -> Iterator[None]:
    """Keep a terminal's Ctrl-C from the processes that this thread starts in the block.

    The terminal signals the whole process group. A child inherits the signals that its parent
    blocks, so the signal is blocked here and left to a thread that only waits for it; Python runs
    the handler in the main thread all the same.
    """
    over = threading.Event()

    def receive() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        over.wait()

    threading.Thread(target=receive, name="ctrl-c", daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        over.set()


GRACE = 30.0


@contextmanager
def hard_timeout(seconds: float | None, *, grace: float = GRACE) -> Iterator[None]:
    """Ask the process to stop after a time, and let the kernel kill it if it has not stopped a while later.

    The request is SIGTERM, which a fit answers with a checkpoint. The end is SIGALRM with its default action: the
    kernel carries it out, and no hanging library or held interpreter lock can keep it off.

    Args:
        seconds: until the request; None for no limit.
        grace: seconds from the request to the end.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    request = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    request.daemon = True
    request.start()
    signal.setitimer(signal.ITIMER_REAL, seconds + grace)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        request.cancel()
        signal.signal(signal.SIGALRM, before)
