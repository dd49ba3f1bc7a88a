"""Tell another program, over HTTP, what became of a run."""

import json
import os
import urllib.request
from collections.abc import Mapping
from typing import Any

from nnbuild.errors import ConfigError, NnbuildError

VARIABLE = (
    "NNBUILD_WEBHOOK"  # no setting of the run: it often holds a secret, and a run's config is kept
)


class WebhookError(NnbuildError):
    """The other program did not take the message; the run is what it is all the same."""


def configured() -> str | None:
    """`$NNBUILD_WEBHOOK`, or None.

    Raises:
        ConfigError: it is no http or https URL.
    """
    url = os.environ.get(VARIABLE) or None
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"${VARIABLE} is {url[:12]!r}…, expected an http:// or https:// URL")
    return url


def post(url: str, message: Mapping[str, Any], *, timeout: float = 5.0) -> int:
    """Send a message as JSON; its `text` is what Slack and its likes show.

    Args:
        url: http or https.
        message: with a `text`.
        timeout: seconds.

    Returns:
        The HTTP status.

    Raises:
        WebhookError: no answer in time, or an answer other than 2xx.
    """
    request = urllib.request.Request(  # noqa: S310  (the scheme is checked where the URL comes from)
        url, json.dumps(dict(message)).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            return int(answer.status)
    except (OSError, ValueError) as error:
        raise WebhookError(f"webhook did not take the message: {error}; see ${VARIABLE}") from error
