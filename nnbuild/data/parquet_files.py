"""Open the Parquet files of an input: all footers in parallel, then one file after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.data import archives
from nnbuild.data.file_tree import File, outage_of
from nnbuild.data.parquet import errors_as_data_errors
from nnbuild.errors import DataError
from nnbuild.runtime.threads import in_threads, in_threads_if_waiting
from nnbuild.store.filesystem import is_remote

T = TypeVar("T")
BROKEN = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, RuntimeError)
"""Errors that reading a damaged file raises."""
_LOCAL_THREADS, _REMOTE_THREADS = 4, 32  # a remote file takes several round trips
_BUFFER_BYTES = 2**17  # of a local file, for each column


class ParquetFiles:
    """The Parquet files of an input.

    Args:
        files: Files, in order; all are local or all are remote.
    """

    def __init__(self, files: Sequence[File]) -> None:
        self._files = files
        self._open: tuple[int, pq.ParquetFile] | None = None
        self._ahead: set[int] = set()
        self._fetching: Iterator[tuple[int, pa.Buffer]] = iter(())

    def footers(self) -> Iterator[tuple[pa.Schema, pq.FileMetaData]]:
        """Yield the schema and the metadata of each file, in order.

        Raises:
            DataError: A file is damaged.
        """
        return self._for_each(_footer)

    def versions(self) -> Iterator[tuple[int, str]]:
        """Yield the size of each file with its time of change, or with the ETag of an object."""
        return self._for_each(_version)

    def _for_each(self, function: Callable[[Any], T]) -> Iterator[T]:
        paths = (file.path for file in self._files)
        if self._files[0].is_local:
            return in_threads_if_waiting(function, paths, _LOCAL_THREADS)
        return in_threads(function, paths, _REMOTE_THREADS)

    def get(self, number: int) -> pq.ParquetFile:
        """Return a file, which stays open until another one is asked for."""
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                self._open[1].close()
                self._open = None  # in case the next one cannot be opened
            content = self._fetched(number)
            file = open_file(self._files[number].path) if content is None else content
            self._open = (number, file)
        return self._open[1]

    def fetch_ahead(self, numbers: Iterable[int]) -> None:
        """Begin to fetch those of these files that are remote, each as a whole."""
        self._ahead = {number for number in numbers if not self._files[number].is_local}
        self._fetching = in_threads(self._fetch, sorted(self._ahead), _REMOTE_THREADS)

    def _fetch(self, number: int) -> tuple[int, pa.Buffer]:
        path = self._files[number].path
        return number, pa.py_buffer(path.fs.cat_file(path.path))

    def _fetched(self, number: int) -> pq.ParquetFile | None:
        """Return a file that was fetched ahead; None if it was not."""
        while number in self._ahead:
            try:
                fetched, content = next(self._fetching)
            except BROKEN:  # opening the file again says what is wrong, if it still is
                self._ahead.clear()
                break
            self._ahead.remove(fetched)
            if fetched == number:
                return pq.ParquetFile(pa.BufferReader(content))
        return None


def open_file(path: Any) -> pq.ParquetFile:
    """Open a local or remote file, for reading a row group in batches."""
    if is_remote(path):
        return pq.ParquetFile(path.path, filesystem=path.fs)
    archives.require_regular(path)
    # Otherwise a row group is loaded completely before its first rows are read.
    return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def why_unreadable(error: Exception, file: File) -> str:
    """Return why a file that was listed cannot be read.

    Raises:
        StoreError: It is not the fault of the file.
        Exception: Any other error than those of a bad file, as it was raised.
    """
    if (problem := outage_of(file, error)) is not None:
        raise problem from error
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, DataError):  # it cannot be opened
        return str(error).removeprefix(f"{file}: ")
    if not isinstance(error, BROKEN):
        raise error
    return f"not readable as Parquet ({archives.reason_of(error)[:200]})"


def _footer(path: Any) -> tuple[pa.Schema, pq.FileMetaData]:
    with errors_as_data_errors(path), open_file(path) as file:
        return file.schema_arrow, file.metadata


def _version(path: Any) -> tuple[int, str]:
    if is_remote(path):
        info = path.fs.info(path.path)
        return int(info["size"]), str(info.get("ETag") or info.get("LastModified") or "")
    status = path.stat()
    return status.st_size, str(status.st_mtime_ns)
