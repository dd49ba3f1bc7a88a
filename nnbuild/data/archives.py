"""Read untrusted files: regular files only, and no more bytes than their headers claim."""

import errno
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from nnbuild.errors import DataError, StoreError
from nnbuild.runtime.regular_files import irregular, open_checked
from nnbuild.store.filesystem import as_store_error, is_of_service

_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_MIN_ALLOWANCE = 64 << 20  # bytes; for small files, whatever their ratio
_MAX_RATIO = 100  # images compress 2 to 20 times; zip bombs reach deflate's limit of 1032
_OUTAGES = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ENXIO", "ENODEV", "ESTALE", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPIPE"),
        *("ENOTCONN", "ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
)
_ADDRESS = re.compile(r"<[^<>]*\bat 0x[0-9a-fA-F]+>")  # differs in each process


def allowance(packed: int) -> int:
    """Return the number of bytes that a compressed file may expand to.

    Args:
        packed: Size of the compressed file in bytes.

    Returns:
        64 MiB plus 100 times the size: above what images need, far below what zip bombs need.
    """
    return _MIN_ALLOWANCE + _MAX_RATIO * packed


def reason_of(error: BaseException) -> str:
    """Return the message of a library's error on one line, without memory addresses."""
    text = " ".join(_ADDRESS.sub("the file", str(error)).split())
    return text or type(error).__name__


def outage(error: Exception, where: object) -> StoreError | None:
    """Return the error to raise if a read failed because of the machine, and not of the file.

    A file that a disk, a network or the memory could not deliver may be sound: its rows are not
    bad, and a job that reads it can be resumed.

    Args:
        error: What reading the file raised.
        where: The file, for the message.

    Returns:
        None if the file itself is missing, not accessible or damaged.
    """
    if isinstance(error, MemoryError):
        return StoreError(f"{where}: does not fit in the memory of this machine; use less data")
    if is_of_service(error) or (isinstance(error, OSError) and error.errno in _OUTAGES):
        return as_store_error(f"read {where}", error)
    return None


@contextmanager
def read_errors_as_data_errors(where: object) -> Iterator[None]:
    """Convert errors of the standard library on a damaged file to a `DataError` that names it.

    Raises:
        DataError: The file is missing, not accessible or damaged.
        StoreError: See `outage`.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file") from error
    except PermissionError as error:
        raise DataError(f"{where}: not readable; fix its permissions") from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError, OverflowError, MemoryError) as error:
        if (problem := outage(error, where)) is not None:
            raise problem from error
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise DataError(f"{where}: a link that leads back to itself; remove it") from error
        reason = reason_of(error)
        raise DataError(f"{where}: damaged or unreadable ({reason}); download it again") from error


def require_regular(path: Path) -> int:
    """Refuse a path that is not a regular file, because reading a pipe or a device can block.

    Returns:
        Size of the file in bytes.

    Raises:
        DataError: The path does not lead to a regular file.
    """
    with read_errors_as_data_errors(path):
        status = path.stat()
    _require_ordinary(path, status)
    return status.st_size


def _require_ordinary(path: Path | str, status: os.stat_result) -> None:
    if (kind := irregular(status.st_mode)) is not None:
        raise DataError(
            f"{path}: {kind}, not an ordinary file; save its content as a file, and use that"
        )


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises:
        DataError: The path does not lead to a regular file, or it cannot be opened.
    """
    with read_errors_as_data_errors(path):
        return _open_regular(path, -1)


def read_regular(path: Path | str) -> bytes:
    """Read a regular file.

    Raises:
        DataError: See `open_regular`.
    """
    with read_errors_as_data_errors(path), _open_regular(path, 0) as file:
        return file.read()


def _open_regular(path: Path | str, buffering: int) -> IO[bytes]:
    status = os.stat(path)  # noqa: PTH116  (a Path takes as long to make as the call)
    _require_ordinary(path, status)
    if status.st_size == 0:
        return io.BytesIO()  # files of /proc and /sys claim to be empty, and some block
    return open_checked(path, lambda status: _require_ordinary(path, status), buffering)


def first_bytes(path: Path, count: int) -> bytes:
    """Return the first bytes of a regular file.

    Raises:
        DataError: See `open_regular`.
    """
    with open_regular(path) as file, read_errors_as_data_errors(path):
        return file.read(count)


@contextmanager
def open_maybe_gzipped(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file that may be gzipped, whatever its name.

    Yields:
        The decompressed stream, and the maximum number of bytes it may contain.

    Raises:
        DataError: The file is missing or unreadable, or is found to be damaged while it is read.
    """
    size = require_regular(path)
    with open_regular(path) as raw, read_errors_as_data_errors(path):
        packed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield cast(IO[bytes], stream), allowance(size)
        else:
            yield raw, size


def exact_chunks(stream: Any, size: int, where: object) -> Iterator[bytes]:
    """Yield the rest of a stream, which must have the claimed size, a chunk at a time.

    Raises:
        DataError: The stream is shorter or longer.
    """
    count = 0
    while count < size:
        chunk = stream.read(min(_CHUNK, size - count))
        if not chunk:
            raise DataError(
                f"{where}: truncated, {count} bytes of data, expected {size} by its header"
            )
        count += len(chunk)
        yield chunk
    if stream.read(1):
        raise DataError(f"{where}: damaged, it has more data than the {size} bytes of its header")
