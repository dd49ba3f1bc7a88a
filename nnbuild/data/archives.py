"""Reading compressed files that nobody vouches for: as many bytes as were announced, within a bound."""

import gzip
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from nnbuild.errors import DataError

_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_FLOOR = 64 << 20  # small files may expand to this, whatever their ratio
_RATIO = 100  # images compress 2 to 20 times; deflate's limit, which bombs reach, is 1032


def allowance(packed: int) -> int:
    """How many bytes a compressed file may expand to.

    Args:
        packed: its size in bytes.

    Returns:
        64 MiB and 100 times its size: ten times more than images need, a tenth of what a bomb wants.
    """
    return _FLOOR + _RATIO * packed


@contextmanager
def translated(where: object) -> Iterator[None]:
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
    except (EOFError, zlib.error, OSError, OverflowError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: damaged or unreadable ({reason}); fetch it again") from error


def require_regular(path: Path) -> int:
    """Refuse what is no ordinary file: a pipe or a device would be read for ever.

    Returns:
        The file's size in bytes.

    Raises:
        DataError: naming the path.
    """
    with translated(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: not an ordinary file; expected one")
    return status.st_size


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file that may be gzipped, whatever its name says.

    Yields:
        The decompressed stream, and the most bytes that it may hold.

    Raises:
        DataError: the file is missing, unreadable, or turns out to be damaged while it is read.
    """
    size = require_regular(path)
    with translated(path), path.open("rb") as raw:
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
