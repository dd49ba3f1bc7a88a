"""End this process after a time, even if it hangs where no Python runs."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 30.0


@contextmanager
def ended_after(seconds: float | None, *, grace: float = GRACE) -> Iterator[None]:
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
