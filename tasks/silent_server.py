"""Wait only once for a Prefect server that does not answer, not at each report of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import httpx
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

_HASTY: dict[Any, int] = {PREFECT_CLIENT_MAX_RETRIES: 0}


@dataclass
class _Silence:
    """What this process knows about a server that does not answer.

    Attributes:
        lasts: Whether it did not answer the last request.
        asked_again_at: Time of the monotonic clock before which it is not asked.
    """

    lasts: bool = False
    asked_again_at: float = 0.0


_silence = _Silence()


@contextmanager
def waiting_once() -> Iterator[None]:
    """Send the server something in a block that the run does not need.

    Prefect tries each request for a minute. After one that failed, the requests of later blocks are
    tried once, until one succeeds: a run would wait for minutes if its server went away. A server
    that takes connections and answers nothing costs a minute for each try, so it is asked again
    only when as much time has passed as was lost.

    Raises:
        ConnectionError: It is too early to ask it again.
    """
    began = time.monotonic()
    if began < _silence.asked_again_at:
        raise ConnectionError("the Prefect server did not answer an earlier request")
    try:
        with temporary_settings(_HASTY) if _silence.lasts else nullcontext():
            yield
    except httpx.HTTPError as error:  # no answer, or that of a proxy
        _silence.lasts = True
        if isinstance(error, httpx.TimeoutException):
            ended = time.monotonic()
            _silence.asked_again_at = ended + (ended - began)
        raise
    _silence.lasts = False


def is_silent() -> bool:
    """Return whether the server did not answer the last request of `waiting_once`."""
    return _silence.lasts
