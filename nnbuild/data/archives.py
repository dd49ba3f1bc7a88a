"""Read files that nobody vouches for: ordinary files only, and no more bytes than they announce."""

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

from nnbuild.errors import DataError
from nnbuild.runtime.regular_files import irregular

_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_FLOOR = 64 << 20  # small files may expand to this, whatever their ratio
_RATIO = 100  # images compress 2 to 20 times; deflate's limit, which bombs reach, is 1032
_ADDRESS = re.compile(r"<[^<>]*\bat 0x[0-9a-fA-F]+>")  # of an object, another one in each process


def allowance(packed: int) -> int:
    """How many bytes a compressed file may expand to.

    Args:
        packed: its size in bytes.

    Returns:
        64 MiB and 100 times its size: ten times more than images need, a tenth of what a bomb wants.
    """
    return _FLOOR + _RATIO * packed


def reason_of(error: BaseException) -> str:
    """Return what an error of a library says: on one line, and the same each time."""
    text = " ".join(_ADDRESS.sub("the file", str(error)).split())
    return text or type(error).__name__


@contextmanager
def read_errors_as_data_errors(where: object) -> Iterator[None]:
    """Turn what the standard library raises on a damaged file into a `DataError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file; give a file that exists") from error
    except PermissionError as error:
        raise DataError(f"{where}: not readable; mend its permissions") from error
    except MemoryError as error:
        raise DataError(
            f"{where}: does not fit into this machine's memory; give less data"
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError, OverflowError) as error:
        reason = reason_of(error)
        raise DataError(f"{where}: damaged or unreadable ({reason}); fetch it again") from error


def require_regular(path: Path) -> int:
    """Refuse what is not an ordinary file: reading a pipe or a device can block for ever.

    Returns:
        The file's size in bytes.

    Raises:
        DataError: The path does not lead to an ordinary file.
    """
    with read_errors_as_data_errors(path):
        status = path.stat()
    _require_ordinary(path, status.st_mode)
    return status.st_size


def _require_ordinary(path: Path, mode: int) -> None:
    if (kind := irregular(mode)) is not None:
        raise DataError(
            f"{path}: {kind}, not an ordinary file; save what it gives as a file, and give that"
        )


def open_regular(path: Path) -> IO[bytes]:
    """Open an ordinary file for reading, and nothing else.

    Raises:
        DataError: The path does not lead to an ordinary file, or it cannot be opened.
    """
    if require_regular(path) == 0:
        return io.BytesIO()  # files of /proc and /sys claim to be empty, and some of them block
    with read_errors_as_data_errors(path):
        # A pipe may have taken the file's place since: without O_NONBLOCK, opening it would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _require_ordinary(path, os.fstat(descriptor).st_mode)
    except DataError:
        file.close()
        raise
    return file


def first_bytes(path: Path, count: int) -> bytes:
    """Return the first bytes of an ordinary file.

    Raises:
        DataError: As for `open_regular`.
    """
    with open_regular(path) as file, read_errors_as_data_errors(path):
        return file.read(count)


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file that may be gzipped, whatever its name says.

    Yields:
        The decompressed stream, and the most bytes that it may hold.

    Raises:
        DataError: the file is missing, unreadable, or turns out to be damaged while it is read.
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


def read_exactly(stream: Any, size: int, where: object) -> bytearray:
    """Read the rest of a stream, which must be as long as announced.

    The memory grows with what really arrives, so that a false announcement costs nothing.

    Raises:
        DataError: there is less, or more.
    """
    payload = bytearray()
    while len(payload) < size:
        chunk = stream.read(min(_CHUNK, size - len(payload)))
        if not chunk:
            raise DataError(
                f"{where}: truncated, {len(payload)} bytes of data where its header promises {size}"
            )
        payload += chunk
    if stream.read(1):
        raise DataError(
            f"{where}: more data than the {size} bytes that its header promises; it is damaged"
        )
    return payload
