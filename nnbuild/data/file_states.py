"""The state of files, which changes when one of them does, summed over any parts of the files."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pyarrow.fs import LocalFileSystem
from pydantic import BaseModel, ConfigDict

from nnbuild.runtime.text import encodable
from nnbuild.runtime.threads import in_threads_if_waiting

_FILES_AT_ONCE, _THREADS = 100, 8
_DIGEST_BYTES = 32
_LOCAL = LocalFileSystem()


class FileStates(BaseModel):
    """The state of some files.

    Attributes:
        files: Number of files.
        bytes: Their size.
        digest: Sum of the SHA-256 digests of each file's path, size and time of change, modulo
            2^256, as 64 hexadecimal digits. Thus processes can read the files in any division.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    files: int = 0
    bytes: int = 0
    digest: str = "0" * 2 * _DIGEST_BYTES

    def __add__(self, other: "FileStates") -> "FileStates":
        return FileStates(
            files=self.files + other.files,
            bytes=self.bytes + other.bytes,
            digest=_hex(int(self.digest, 16) + int(other.digest, 16)),
        )


def states_of(paths: Sequence[str]) -> FileStates:
    """Return the state of local files, in threads if the file system makes them wait.

    A file that is gone has a state too, so that the error is raised where it is read.
    """
    starts = range(0, len(paths), _FILES_AT_ONCE)
    groups = (paths[start : start + _FILES_AT_ONCE] for start in starts)
    size = digest = 0
    for states in in_threads_if_waiting(_states, groups, _THREADS):
        for path, file_bytes, changed in states:
            size += file_bytes
            state = hashlib.sha256(f"{file_bytes} {changed} {path}".encode()).digest()
            digest += int.from_bytes(state)
    return FileStates(files=len(paths), bytes=size, digest=_hex(digest))


def _hex(digest: int) -> str:
    return (digest % (1 << 8 * _DIGEST_BYTES)).to_bytes(_DIGEST_BYTES).hex()


def _states(paths: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the path, the size in bytes and the time of change in nanoseconds of each file.

    Arrow asks the system for many files in one call, without the interpreter lock.
    """
    with suppress(OSError, UnicodeEncodeError):
        found = _LOCAL.get_file_info(paths)
        if all(each.is_file for each in found):
            return [
                (path, each.size, each.mtime_ns) for path, each in zip(paths, found, strict=True)
            ]
    return [(encodable(path), *_state(path)) for path in paths]


def _state(path: str) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return 0, -1
    return status.st_size, status.st_mtime_ns
