"""Wait only once for a Prefect server that does not answer, not at each report of a run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import httpx
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

_silent = threading.Event()
_HASTY: dict[Any, int] = {PREFECT_CLIENT_MAX_RETRIES: 0}


@contextmanager
def waiting_once() -> Iterator[None]:
    """Send the server something in a block that the run does not need.

    Prefect tries each request for a minute. After one that failed, the requests of later blocks are
    tried once, until one succeeds: a run would wait for minutes if its server went away.
    """
    try:
        with temporary_settings(_HASTY) if _silent.is_set() else nullcontext():
            yield
    except httpx.HTTPError:  # no answer, or that of a proxy
        _silent.set()
        raise
    _silent.clear()


def is_silent() -> bool:
    """Return whether the server did not answer the last request of `waiting_once`."""
    return _silent.is_set()
