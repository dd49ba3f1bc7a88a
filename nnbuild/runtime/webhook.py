"""Send a message to a webhook over HTTP."""

import ipaddress
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from nnbuild.errors import Caught, ConfigError, NnbuildError
from nnbuild.runtime.credentials import split_credentials
from nnbuild.runtime.outward import describe

# An environment variable and not a setting: it is a secret, and a run's settings are stored.
VARIABLE = "NNBUILD_WEBHOOK"
_THREAD = "nnbuild-webhook"


class WebhookError(NnbuildError):
    """The webhook did not accept a message; the error shows only the host of the URL."""


def configured() -> str | None:
    """Return `$NNBUILD_WEBHOOK`, or None if it is not set.

    Raises:
        ConfigError: It is not an http or https URL.
    """
    url = os.environ.get(VARIABLE) or None
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(  # without the value, which may be a secret
            f"${VARIABLE} is not a valid URL, expected one that begins with http:// or https://"
        )
    return url


def post(url: str, message: Mapping[str, Any], *, timeout: float = 5.0) -> int:
    """Send a message as JSON.

    Redirects are not followed, and the body of the response is not read.

    Args:
        url: URL with http or https, optionally with user and password for basic authentication.
        message: JSON object; chat programs show the value of `text`.
        timeout: Seconds for the whole exchange, from the DNS lookup to the headers of the
            response.

    Returns:
        The HTTP status, 200 to 299.

    Raises:
        WebhookError: There was no such response in time, or the URL is invalid.
    """
    import_module("httpx")  # here, so that the import does not count against the timeout

    try:
        clean, credentials = split_credentials(url)
    except ValueError as error:
        raise WebhookError(f"${VARIABLE} is not a valid URL: {error}") from None
    exchange = _Exchange(clean, credentials, message, timeout)
    # httpx limits each operation, which a server that sends one byte per second never exceeds, and
    # a DNS lookup cannot be cancelled. The limit for everything is how long this thread waits.
    thread = threading.Thread(target=exchange.run, name=_THREAD, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        exchange.abandon()
        raise WebhookError(_problem(exchange.host, f"no answer within {timeout:g} s"))
    if exchange.problem is not None:
        raise WebhookError(_problem(exchange.host, exchange.problem)) from exchange.error
    return exchange.status


def _problem(host: str, reason: str) -> str:
    return f"the webhook at {host} did not take the message: {reason}; check ${VARIABLE}"


class _Exchange:
    """One request, sent by a separate thread."""

    def __init__(
        self,
        url: str,
        credentials: tuple[str, str] | None,
        message: Mapping[str, Any],
        timeout: float,
    ) -> None:
        self._url, self._credentials = url, credentials
        self._message, self._timeout = message, timeout
        self._client: Any = None
        self.host = "an unknown host"
        self.status = 0
        self.problem: str | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        with Caught() as caught:  # servers may respond with anything
            self.status = self._send()
        self.error = caught.error
        if self.error is not None:
            self.problem = _reason(self.error)
        elif not 200 <= self.status < 300:
            self.problem = f"it answered with status {self.status}, expected 200 to 299"

    def abandon(self) -> None:
        """Close the connection, so that the thread ends at the next byte or timeout."""
        with suppress(Exception):
            self._client.close()

    def _send(self) -> int:
        import httpx

        logging.getLogger("httpx").addFilter(_is_not_from_the_webhook)
        url = httpx.URL(self._url)
        self.host = url.host or self.host
        with (
            httpx.Client(
                auth=self._credentials,
                timeout=self._timeout,
                follow_redirects=False,
                trust_env=not _is_loopback(url.host),  # the environment's proxies
                verify=httpx.create_ssl_context(),  # with the environment's certificates
            ) as self._client,
            self._client.stream("POST", url, json=dict(self._message)) as response,
        ):
            return int(response.status_code)


def _is_not_from_the_webhook(record: logging.LogRecord) -> bool:
    """Filter the requests from httpx's log, since the path of a webhook is often its password."""
    return record.threadName != _THREAD


def _is_loopback(host: str) -> bool:
    """Return whether a host is this machine, which proxies cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _reason(error: Exception) -> str:
    """Describe an error without the server's response, which may repeat the URL."""
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, (httpx.ConnectError, httpx.ProxyError, ImportError)):
        return describe(error)
    if isinstance(error, httpx.TransportError):
        return f"the answer is not HTTP ({type(error).__name__})"
    if isinstance(error, (httpx.InvalidURL, ValueError)):
        return f"the URL is not valid ({type(error).__name__})"
    return type(error).__name__
