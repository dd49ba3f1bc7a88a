"""Download a file: resumed after an interruption, verified, and moved into place atomically."""

import fcntl
import http.client
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from nnbuild.errors import DataError

Progress = Callable[[str, int, int | None], None]
"""Callback for the name of the file, the bytes so far, and their total (None if unknown)."""
_Report = Callable[[int, int | None], None]

_CHUNK = 1 << 18
_MAX_BYTES = 1 << 30
_ATTEMPTS = 3
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416


class UnavailableError(DataError):
    """The data are not available from any source."""


def fetch(
    url: str,
    target: Path,
    verify: Callable[[Path], None],
    *,
    progress: Progress | None,
    timeout: float,
) -> None:
    """Download a file, unless a valid one exists.

    The content is stored in a hidden `.part` file next to the target until it is verified, so that
    an interrupted download can be resumed. Of several processes one uses that file, the others use
    temporary files.

    Args:
        url: URL with the scheme http or https.
        target: Path of the file; its folder is created.
        verify: Function that raises `DataError` if the file is not the expected one.
        progress: Callback for the progress.
        timeout: Seconds to wait for a response of the server.

    Raises:
        UnavailableError: The server is unreachable, has no such file, or sends another one.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _partial(target) as part:
            if not _is_valid(target, verify):
                _fill(
                    url, part, verify, partial(progress, target.name) if progress else None, timeout
                )
                os.fsync(part.fileno())
                Path(part.name).replace(target)
    except OSError as error:
        raise UnavailableError(f"{target.parent}: {_reason(error)}") from error


def _is_valid(target: Path, verify: Callable[[Path], None]) -> bool:
    if not target.exists():
        return False
    try:
        verify(target)
    except DataError:
        return False
    return True


def _fill(
    url: str,
    part: IO[bytes],
    verify: Callable[[Path], None],
    report: _Report | None,
    timeout: float,
) -> None:
    """Download until `verify` succeeds; start again if a resumed download is invalid."""
    for attempt in range(1, _ATTEMPTS + 1):
        resumed = part.seek(0, os.SEEK_END) > 0
        try:
            _transfer(url, part, report, timeout)
        except (OSError, ValueError, http.client.HTTPException) as error:
            hopeless = isinstance(error, urllib.error.HTTPError) or part.tell() == 0
            if hopeless or attempt == _ATTEMPTS:
                raise UnavailableError(f"{url}: {_reason(error)}") from error
            continue
        part.flush()
        try:
            verify(Path(part.name))
        except DataError as error:
            part.truncate(0)
            if not resumed:
                raise UnavailableError(f"{url}: not the published data ({error})") from error
        else:
            return
    raise UnavailableError(f"{url}: not the published data, even when downloaded again")


def _transfer(url: str, part: IO[bytes], report: _Report | None, timeout: float) -> None:
    """Append the missing bytes; start again if the server does not support that."""
    done = part.tell()
    headers = {"User-Agent": "nnbuild", **({"Range": f"bytes={done}-"} if done else {})}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  (see `_opener`)
        response = _opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if done and error.code == _RANGE_NOT_SATISFIABLE:
                return  # complete, or too long: `verify` decides
            raise
    with response:
        if response.status != _PARTIAL_CONTENT or _range_start(response) != done:
            done = part.seek(0)
            part.truncate()
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isascii() and length.isdigit() else None
        while chunk := response.read(_CHUNK):
            done += part.write(chunk)
            if done > _MAX_BYTES:
                part.truncate(0)
                raise UnavailableError(f"{url}: larger than {_MAX_BYTES} bytes; refused")
            if report:
                report(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _range_start(response: http.client.HTTPResponse) -> int | None:
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    start = span.partition("-")[0]
    return int(start) if unit == "bytes" and start.isascii() and start.isdigit() else None


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for HTTP and HTTPS only, which refuses redirects to files or FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


@contextmanager
def _partial(target: Path) -> Iterator[IO[bytes]]:
    """Open the target's `.part` file and lock it; a temporary file if another process has it."""
    path = target.with_name(f".{target.name}.part")
    while True:
        with path.open("a+b") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                break
            if _is_at(part, path):  # otherwise the previous owner has just moved it to the target
                try:
                    yield part
                finally:
                    _remove_empty(part, path)
                return
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
    ) as own:
        try:
            yield own
        finally:
            Path(own.name).unlink(missing_ok=True)


def _is_at(part: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(part.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_empty(part: IO[bytes], path: Path) -> None:
    if _is_at(part, path) and not os.fstat(part.fileno()).st_size:
        path.unlink()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    text = str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)
    return " ".join(text.split()) or type(error).__name__
