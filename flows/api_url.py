"""The URL of the Prefect server's API, which Prefect writes into logs and messages."""

from nnbuild.errors import ConfigError
from nnbuild.runtime.credentials import has_credentials


def require_api_url_without_credentials() -> None:
    """Refuse credentials in the URL, wherever it is set: in the environment or in a profile of Prefect.

    Raises:
        ConfigError: With the setting that is for them.
    """
    from prefect.settings import PREFECT_API_URL

    if has_credentials(str(PREFECT_API_URL.value() or "")):
        raise ConfigError(
            "PREFECT_API_URL is a URL with credentials, which Prefect writes into its logs; "
            "remove them and set PREFECT_API_AUTH_STRING=user:password"
        )
