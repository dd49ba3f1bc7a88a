"""Standard output of a command: a full disk behind it is an error of the user, not a bug."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from nnbuild.errors import OutputError

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota",
    errno.EFBIG: "raise the limit on the size of files",
}


def null_stream() -> TextIO:
    """Return a stream that leads nowhere."""
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


@contextmanager
def checked_stdout() -> Iterator[None]:
    """Check in a block that everything that is printed can be written, and flush it at the end.

    After a failure standard output leads nowhere, so that the interpreter's own flush is silent.

    Raises:
        OutputError: Standard output cannot be written to.
        BrokenPipeError: Nobody reads it.
    """
    stream = sys.stdout
    checked = _CheckedStream(stream)
    sys.stdout = cast("TextIO", checked)
    try:
        yield
        checked.flush()
    finally:
        sys.stdout = null_stream() if checked.has_failed else stream


class _CheckedStream:
    """A stream whose failures are OutputErrors; otherwise it is the stream that it wraps."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.has_failed = False

    def write(self, text: str) -> int:
        """Write a text."""
        with self._failures_as_output_errors():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._failures_as_output_errors():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _failures_as_output_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.has_failed = True
            if isinstance(error, BrokenPipeError):
                raise
            remedy = _REMEDIES.get(error.errno or 0, "redirect it to another file")
            raise OutputError(
                f"cannot write to standard output: {error.strerror or error}; {remedy}"
            ) from error
