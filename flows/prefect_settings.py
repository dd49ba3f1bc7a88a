"""Prepare and check Prefect's settings: environment variables, proxies, home folder, API URL."""

import io
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from nnbuild.errors import ConfigError, one_line
from nnbuild.runtime.credentials import has_credentials

if TYPE_CHECKING:
    from prefect.settings import Settings

_SETTINGS = {
    # Prefect would print whole requests that were not answered.
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # Prefect would send usage data, and print a notice about it before our first line.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
SILENT = MappingProxyType(
    {
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    }
)
"""Settings of a command that shows a run itself: Prefect logs to its database only."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def prepare_environment(settings: Mapping[str, str] = MappingProxyType({})) -> None:
    """Set Prefect's environment variables, for this process and its children.

    Args:
        settings: Additional settings of Prefect. Values that the user has set take precedence.

    Raises:
        ConfigError: `PREFECT_HOME` cannot be created or written.
    """
    for name, value in {**_SETTINGS, **settings}.items():
        os.environ.setdefault(name, value)
    # Prefect would print each log line that its server did not accept.
    logging.raiseExceptions = False
    bypass_proxies_for_loopback()
    _require_home()


def bypass_proxies_for_loopback() -> None:
    """Exclude this machine from the proxies that the environment configures."""
    listed = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = [each.strip() for each in listed.split(",") if each.strip()]
    value = ",".join([*hosts, *(each for each in _LOOPBACK if each not in hosts)])
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = value


def _require_home() -> None:
    """Create Prefect's folder. Without it, Prefect prints Python warnings and waits for minutes."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return
    except OSError as error:
        raise ConfigError(
            f"cannot write to Prefect's folder {home} ({error.strerror}); "
            "set PREFECT_HOME to a writable folder"
        ) from error


def read_settings() -> "Settings":
    """Return Prefect's current settings.

    Raises:
        ConfigError: A setting is invalid, or the API URL contains credentials.
    """
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):  # Prefect prints there what its exception says
            from prefect.settings import get_current_settings

            settings = get_current_settings()
    except Exception as error:
        raise ConfigError(
            f"cannot read Prefect's settings ({_first_reason(error)}); "
            "correct the PREFECT_… variables or the active profile"
        ) from error
    sys.stderr.write(printed.getvalue())
    require_api_url_without_credentials()
    return settings


def _first_reason(error: Exception) -> str:
    """Return the first of pydantic's errors, or the message of another exception."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return one_line(error)
    first = error.errors()[0]
    setting = ".".join(map(str, first["loc"]))
    return f"{error.title}: {setting} is {first['input']!r}: {first['msg']}"


def require_api_url_without_credentials() -> None:
    """Refuse credentials in the API URL, set in the environment or in a profile of Prefect.

    Raises:
        ConfigError: The URL contains credentials.
    """
    from prefect.settings import PREFECT_API_URL

    if has_credentials(str(PREFECT_API_URL.value() or "")):
        raise ConfigError(
            "PREFECT_API_URL is a URL with credentials, which Prefect writes into its logs; "
            "remove them and set PREFECT_API_AUTH_STRING=user:password"
        )
