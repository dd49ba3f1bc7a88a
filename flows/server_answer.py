"""Ask the Prefect server that is configured whether it can be used, within a time limit."""

import threading
import time
from contextvars import copy_context

from flows.embedded_process import embedded_server_is_lost
from nnbuild.errors import Caught, ConfigError, one_line

SECONDS_TO_ANSWER = 10.0
"""Time for a configured server to answer a request. One that refuses may be starting."""
SECONDS_TO_ANSWER_AT_STOP = 2.0
_SECONDS_BETWEEN_TRIES = 0.5
_PROXY_ERRORS = frozenset({502, 503, 504})
"""Status codes of a proxy whose server is not running yet."""


def require_answer() -> None:
    """Send the configured server a request like those of the run.

    Raises:
        ConfigError: The server does not answer, or refuses the request.
    """
    from prefect.settings import PREFECT_API_URL

    if (problem := server_problem(SECONDS_TO_ANSWER, starting=True)) is not None:
        raise ConfigError(
            f"the Prefect server at {PREFECT_API_URL.value()} cannot be used ({problem}); "
            "start it, correct PREFECT_API_URL, or unset it to use the embedded server"
        )


def server_problem(seconds: float, *, starting: bool = False) -> str | None:
    """Return why the configured server cannot be used, or None if it can.

    Args:
        seconds: Time limit for an answer. The client's own timeouts are no limit, since each of its
            requests is several attempts.
        starting: Whether the server may be starting, and refuse connections at first.
    """
    if embedded_server_is_lost():
        return "the embedded server has exited"
    results: list[str | None] = []
    failures: list[str] = []
    patience = seconds if starting else 0.0

    def ask() -> None:
        results.append(_ask_until_settled(seconds, patience, failures))

    # With the caller's context, which can hold temporary settings of Prefect.
    thread = threading.Thread(target=copy_context().run, args=(ask,), daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:  # it is about to end; at the interpreter's exit it could abort the process
        thread.join(SECONDS_TO_ANSWER_AT_STOP)
    if results:
        return results[0]
    # On a busy machine the last attempt can exceed the limit; an earlier one knows the reason.
    return failures[-1] if failures else f"no answer within {seconds:g} s"


def _ask_until_settled(timeout: float, patience: float, failures: list[str]) -> str | None:
    """Ask until the server answers, refuses for good, or `patience` seconds have passed.

    Args:
        timeout: Seconds for an attempt.
        patience: Seconds for all attempts; 0 for one attempt.
        failures: Reason of each failed attempt; modified in place.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    end = time.monotonic() + patience - _SECONDS_BETWEEN_TRIES
    while True:
        with (
            Caught() as caught,  # whatever the error is, the server cannot be used
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client({"timeout": timeout}, sync_client=True) as client,
        ):
            client.read_flows(limit=1)
        if (error := caught.error) is None:
            return None
        failures.append(one_line(error) or type(error).__name__)
        if time.monotonic() > end or not _may_be_starting(error):
            return failures[-1]
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _may_be_starting(error: Exception) -> bool:
    """Return whether a starting server, or a proxy in front of one, causes such an error."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PROXY_ERRORS
    return isinstance(error, httpx.ConnectError)
