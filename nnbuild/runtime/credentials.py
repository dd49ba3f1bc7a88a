"""Mask credentials in URLs, and refuse them in settings that would be stored."""

import re
from urllib.parse import unquote

from nnbuild.errors import ConfigError

MASK = "***"

_SCHEME_END = re.compile(r":/{1,2}")  # one slash if `pathlib.Path` has removed the other
_AZURE = re.compile(r"(?:abfss?|wasbs?)$", re.IGNORECASE)  # CONTAINER@ACCOUNT is not a credential
_USER = re.compile(r"[^/?#:]*")
_HOST_AND_PORT = re.compile(
    r"(?:localhost|\[[\da-f:.]+\]|[^/?#:@\s]*\.[^/?#:@\s]*)(?::\d{1,5})?(?=[/?#]|$)", re.IGNORECASE
)
_AUTHORITY_END = re.compile(r"[/?#]")
_SECRET_PARAMETER = re.compile(
    r"""
    ([?&;\#](?:
        [\w.%-]*(?:token|secret|passw(?:or)?d|passphrase|pwd|signature|credential
                  |api[_-]?key|access[_-]?key)[\w.%-]*
        |sig|key|pass|auth|authorization|odbc_connect
    )=)
    [^\s&"'<>]+
    """,
    re.IGNORECASE | re.VERBOSE,
)


def mask_credentials(text: str) -> str:
    """Replace the credentials in all URLs of a text by `***`.

    This masks users and passwords before the host, and the values of query parameters whose names
    suggest a secret. A password may contain any character but whitespace; if it is not
    percent-encoded and the end of the credentials is ambiguous, more is masked rather than less.

    Args:
        text: Any text, such as a URL, a message or a traceback.
    """
    if ":/" in text:
        text = re.sub(r"\S+", lambda found: _without_userinfo(found[0]), text)
    return _SECRET_PARAMETER.sub(rf"\1{MASK}", text)


def has_credentials(url: str) -> bool:
    """Return whether a text is a URL with credentials, see `mask_credentials`."""
    if ":/" not in url:
        return False
    return _without_userinfo(url) != url or _SECRET_PARAMETER.search(url) is not None


def require_no_credentials(url: str, what: str) -> None:
    """Refuse a URL with credentials, since it would be stored or shown.

    Args:
        url: Value of a setting; other values than URLs are accepted.
        what: Name of the setting for the message.

    Raises:
        ConfigError: The URL contains a password, a token or a signature; the message does not
            repeat it.
    """
    if has_credentials(url):
        raise ConfigError(
            f"{what} is a URL with credentials, which would be stored and shown; "
            f"remove them and {_alternative(url.partition(':')[0].lower())} "
            "(docs/guide/deployment.md, Credentials)"
        )


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Split a URL into the URL without credentials, and the decoded user and password.

    Raises:
        ValueError: The URL contains whitespace, or the credentials are not percent-encoded, so
            that their end is ambiguous; the message does not repeat them.
    """
    scheme, separator, rest = url.partition("://")
    end = _AUTHORITY_END.search(rest)
    authority = rest[: end.start()] if end else rest
    userinfo, at, host = authority.rpartition("@")
    tail = rest[len(authority) :]
    ambiguous = "@" in userinfo or "@" in tail if at else _without_userinfo(url) != url
    if re.search(r"\s", url):
        raise ValueError("it contains whitespace; percent-encode it as %20")
    if ambiguous:
        raise ValueError(
            "its user and password are ambiguous; percent-encode them, such as %40 for @"
        )
    if not at:
        return url, None
    user, _, password = userinfo.partition(":")
    return f"{scheme}{separator}{host}{tail}", (unquote(user), unquote(password))


def _without_userinfo(text: str) -> str:
    """Mask users and passwords of URLs in a text without whitespace.

    The time is linear in the length of the text, unlike that of a regular expression.
    """
    last_at = text.rfind("@")
    parts: list[str] = []
    position = 0
    while (found := _SCHEME_END.search(text, position)) and found.start() < last_at:
        start = found.end()
        end = _userinfo_end(text, start, last_at)
        parts.append(text[position:start])
        if end is None or (
            ":" not in text[start:end] and _AZURE.search(text[position : found.start()])
        ):
            position = start
        else:
            parts.append(MASK)
            position = end
    return "".join([*parts, text[position:]])


def _userinfo_end(text: str, start: int, last_at: int) -> int | None:
    """Return the position of the `@` after a user and password at `start`; None without them."""
    user = _USER.match(text, start)
    after = user.end() if user else start
    at = text.rfind("@", start, after)
    # HOST:80/a@b has no password. A host without a dot looks like a user, and is masked.
    is_host = _HOST_AND_PORT.match(text, at + 1 if at >= 0 else start)
    if text[after : after + 1] == ":" and after < last_at and not is_host:
        return last_at
    return at if at > start else None


def _alternative(scheme: str) -> str:
    if scheme in {"s3", "s3a"}:
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if scheme in {"http", "https"}:
        return "set the header in $FSSPEC_HTTP, or download the file"
    if scheme.partition("+")[0] in {"postgresql", "postgres"}:
        return "set PGPASSWORD or use ~/.pgpass"
    if scheme.partition("+")[0] in {"mysql", "mariadb", "mssql", "oracle"}:
        return "put the password into the configuration of the driver"
    protocol = re.sub(r"\W", "_", scheme).upper()
    return f"set FSSPEC_{protocol}_USERNAME and FSSPEC_{protocol}_PASSWORD"
