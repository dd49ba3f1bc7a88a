"""Hold the pixels of a dataset in memory, or in a file that is mapped if they are too many.

A mapped file is an array like any other: its pages are read when they are used, and given back when
memory is short. So a large set is read, split, checked, trained on and evaluated by the same code
as a small one, as long as that code never copies the whole of it.
"""

import hashlib
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nnbuild.errors import StoreError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.cgroups import available_memory
from nnbuild.store.filesystem import os_errors_as_store_errors, read_json, write_json
from nnbuild.store.ids import is_temporary_name, temporary_name
from nnbuild.store.store import Store

_SHARE = 8
"""Part of the available memory for the pixels of a set; a run in memory holds them several times:
as they were read, as they are split, and as TensorFlow's tensor."""

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Workspace:
    """Where pixels are held.

    Attributes:
        folder: Folder for the files of those that memory does not hold; None to hold all in memory.
        limit: Largest size of the pixels of a set in memory, in bytes; None for a share of the
            memory that is available when it is asked for.
        keeps_maps: Whether the pixels of a dataset of the store stay in the folder, for the next
            who reads it; otherwise their files have no name, and disappear with the arrays.
    """

    folder: Path | None = None
    limit: int | None = None
    keeps_maps: bool = False

    def holds(self, size: int) -> bool:
        """Return whether pixels of a size in bytes are held in memory."""
        if self.folder is None:
            return True
        return size <= (available_memory() // _SHARE if self.limit is None else self.limit)


IN_MEMORY = Workspace()


def workspace_in(store: Store) -> Workspace:
    """Return where pixels are held that belong to no run: in memory, or in a store's staging."""
    return Workspace(store.local_root / "staging")


class MappedPixels(np.memmap[Any, Any]):
    """Pixels in a file, read-only; of the type of the source until they are scaled to uint8.

    Slices are mapped too; selections by index and results of operations are ordinary arrays.

    Attributes:
        workspace: Where selections are held that are too large for memory.
    """

    workspace: Workspace

    def __array_finalize__(self, source: Any) -> None:
        """Pass the workspace on to a slice."""
        super().__array_finalize__(source)
        self.workspace = getattr(source, "workspace", IN_MEMORY)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: Any = None) -> Any:
        """Return the result of an operation as an ordinary array or number."""
        result = np.asarray(array)
        return result[()] if return_scalar else result

    def __getitem__(self, index: Any) -> Any:
        """Return a slice, mapped, or a selection, in memory.

        Raises:
            StoreError: The file was truncated since it was mapped.
        """
        self._require_whole()
        found = super().__getitem__(index)
        if isinstance(found, MappedPixels) and vars(found)["_mmap"] is None:
            return found.view(np.ndarray)
        return found

    def gather(self, rows: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return images by their numbers, in ascending order, read from the disk in parallel.

        Raises:
            StoreError: The file was truncated since it was mapped.
        """
        self._require_whole()
        each = self[:1].nbytes
        if each >= mmap.PAGESIZE and hasattr(mmap, "MADV_WILLNEED"):
            file: mmap.mmap = vars(self)["_mmap"]
            begin = self.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
            for row in rows.tolist():
                start = begin + row * each
                page = start - start % mmap.PAGESIZE
                file.madvise(mmap.MADV_WILLNEED, page, start + each - page)
        return np.take(np.asarray(self), rows, axis=0)

    def _require_whole(self) -> None:
        """Refuse a truncated file: reading a page that it no longer has ends the process."""
        file: mmap.mmap | None = vars(self)["_mmap"]
        if file is not None and (size := file.size()) < len(file):
            raise StoreError(
                f"{self.filename}: truncated to {size} of {len(file)} bytes while it was used; "
                "resume the run, which writes it again"
            )


def is_mapped(pixels: NDArray[Any]) -> bool:
    """Return whether pixels are in a file."""
    return isinstance(pixels, MappedPixels)


def chunks(pixels: NDArray[Any], size: int = _CHUNK_BYTES) -> Iterator[slice]:
    """Yield the slices that divide images into chunks of a size in bytes, at least one image."""
    step = max(1, size // max(1, pixels[:1].nbytes))
    for start in range(0, len(pixels), step):
        yield slice(start, min(start + step, len(pixels)))


def select(pixels: NDArray[np.uint8], rows: NDArray[Any] | slice) -> NDArray[np.uint8]:
    """Return some of the images; of mapped ones, a selection that memory does not hold is mapped.

    Args:
        pixels: Images, shape (n, height, width, channels).
        rows: Numbers of the rows, a bool for each row, or a slice.
    """
    if isinstance(rows, slice) or not isinstance(pixels, MappedPixels):
        return pixels[rows]
    numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    if not len(numbers):
        return np.asarray(pixels[:0])
    writer = PixelWriter(pixels.workspace, expected=len(numbers) * pixels[:1].nbytes)
    step = max(1, _CHUNK_BYTES // pixels[:1].nbytes)
    for start in range(0, len(numbers), step):
        writer.append(pixels[numbers[start : start + step]])
    return writer.finish()


def concatenate(arrays: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join images of one shape; the result is mapped if one of them is and memory does not hold it.

    Args:
        arrays: At least one array of shape (n, height, width, channels).
    """
    mapped = next((each for each in arrays if isinstance(each, MappedPixels)), None)
    if mapped is None:
        return np.concatenate(arrays)
    writer = PixelWriter(mapped.workspace, expected=sum(each.nbytes for each in arrays))
    for each in arrays:
        for rows in chunks(each):
            writer.append(each[rows])
    return writer.finish()


class PixelWriter:
    """Writer of images, a batch at a time: to memory as long as that holds them, then to a file.

    The file has no name: it disappears with the last array that is mapped to it, and with the
    process, however that ends.

    Args:
        workspace: Where the pixels are held.
        expected: Their size in bytes, if known; it saves holding the first ones in memory.

    Raises:
        StoreError: The file cannot be written, as on a full disk.
    """

    def __init__(self, workspace: Workspace, expected: int = 0) -> None:
        self._workspace, self._expected = workspace, expected
        self._held: list[NDArray[np.uint8]] = []
        self._file: IO[bytes] | None = None
        self._size = self._count = 0
        self._shape: tuple[int, ...] = ()

    def append(self, images: NDArray[np.uint8]) -> None:
        """Add images, whose shape the caller has checked."""
        self._count += len(images)
        self._size += images.nbytes
        self._shape = images.shape[1:]
        if self._file is None and not self._workspace.holds(max(self._size, self._expected)):
            with self._writing():
                _make_folder(self._workspace)
                self._file = _temporary_file(self._workspace.folder)
            weakref.finalize(self, self._file.close)
            for each in self._held:
                self._write(self._file, each)
            self._held.clear()
        if self._file is None:
            self._held.append(images)
        else:
            self._write(self._file, images)

    def finish(self) -> NDArray[np.uint8]:
        """Return all images, shape (n, height, width, channels); at least one was added."""
        if self._file is None:
            return self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        with self._file, self._writing():
            return _mapped(self._file, (self._count, *self._shape), self._workspace)

    def _write(self, file: IO[bytes], images: NDArray[np.uint8]) -> None:
        # Not by assignment to a mapped array, which kills the process where the disk is full.
        with self._writing():
            left = np.ascontiguousarray(images).reshape(-1).data
            while left:
                left = left[file.write(left) :]

    def _writing(self) -> Any:
        return os_errors_as_store_errors(f"write pixels to {self._workspace.folder}")


def array_of(
    payload: Iterator[bytes], kind: np.dtype[Any], shape: tuple[int, ...], workspace: Workspace
) -> NDArray[Any]:
    """Return the array that some bytes are, mapped if memory does not hold it.

    Memory and the file grow as bytes arrive, so that a false claim of a size costs nothing.

    Args:
        payload: The bytes in chunks; there are as many as the type and the shape need.
        kind: Type of the values.
        shape: Shape of the array.
        workspace: Where the array is held.
    """
    size = math.prod(shape) * kind.itemsize
    if workspace.holds(size):
        held = bytearray()
        for chunk in payload:
            held += chunk
        return np.frombuffer(held, kind).reshape(shape)
    writer = PixelWriter(workspace, expected=size)
    for chunk in payload:
        writer.append(np.frombuffer(chunk, np.uint8))
    return writer.finish().view(kind).reshape(shape)


class ImageCollector:
    """Collector of single images of one shape.

    Args:
        workspace: Where the pixels are held.
        count: Largest number of images.
        shape: Their height, width and channels.
    """

    def __init__(self, workspace: Workspace, count: int, shape: tuple[int, ...]) -> None:
        each = max(1, math.prod(shape))
        self._writer = PixelWriter(workspace, expected=count * each)
        rows = count if workspace.holds(count * each) else min(count, _CHUNK_BYTES // each + 1)
        self._batch = np.empty((rows, *shape), np.uint8)
        self._filled = 0

    def append(self, image: NDArray[np.uint8]) -> None:
        """Add an image."""
        if self._filled == len(self._batch):
            self._writer.append(self._batch)
            self._batch, self._filled = np.empty_like(self._batch), 0
        self._batch[self._filled] = image
        self._filled += 1

    def finish(self) -> NDArray[np.uint8]:
        """Return all images, shape (n, height, width, channels); at least one was added."""
        self._writer.append(self._batch[: self._filled])
        return self._writer.finish()


def mapped_by(
    pixels: NDArray[Any],
    function: Callable[[NDArray[Any]], NDArray[np.uint8]],
    chunk_bytes: int = _CHUNK_BYTES,
) -> NDArray[np.uint8]:
    """Return what a function makes of mapped images, a chunk of them at a time.

    Args:
        pixels: Mapped images of any type, shape (n, height, width, channels).
        function: Function of some of them, which returns as many images of one shape.
        chunk_bytes: Size of a chunk in bytes.
    """
    writer = PixelWriter(getattr(pixels, "workspace", IN_MEMORY))
    for rows in chunks(pixels, chunk_bytes):
        writer.append(np.ascontiguousarray(function(np.asarray(pixels[rows]))))
    return writer.finish()


def _mapped(file: IO[bytes], shape: tuple[int, ...], workspace: Workspace) -> MappedPixels:
    pixels = MappedPixels(file, np.uint8, "r", shape=shape)
    pixels.workspace = workspace
    return pixels


class _Map(BaseModel):
    """Record of a mapped file, written once that is complete.

    Attributes:
        source: SHA-256 of the file that the pixels come from.
        shape: Number of images, height, width and channels.
        sha256: SHA-256 of the mapped file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    shape: tuple[int, int, int, int]
    sha256: str


def open_map(workspace: Workspace, source: str) -> MappedPixels | None:
    """Return the pixels that `write_map` wrote, verified by their digest.

    Args:
        workspace: Where they are.
        source: SHA-256 of the file that they come from.

    Returns:
        None if there is no complete and unchanged file; it must be written again.
    """
    path = _map_path(workspace, source)
    if not path.with_suffix(".json").exists():
        return None
    try:
        record = _Map.model_validate(read_json(path.with_suffix(".json")))
        with path.open("rb") as file:
            if record.source != source or sha256_of(file) != record.sha256:
                return None
            return _mapped(file, record.shape, workspace)
    except (OSError, ValueError, ValidationError, StoreError):
        return None


def write_map(
    workspace: Workspace, source: str, batches: Iterator[NDArray[np.uint8]]
) -> MappedPixels:
    """Write pixels to a file that the next steps of the run open; it appears once it is complete.

    Args:
        workspace: Where to write it; it has a folder.
        source: SHA-256 of the file that they come from.
        batches: The images, at least one.

    Raises:
        StoreError: The file cannot be written, as on a full disk; nothing of it is left.
    """
    path = _map_path(workspace, source)
    digest, count, shape = hashlib.sha256(), 0, (0, 0, 0)
    temporary = path.with_name(temporary_name(path.name))
    with os_errors_as_store_errors(f"write pixels to {path}"):
        _make_folder(workspace)
        for left in filter(lambda each: is_temporary_name(each.name), path.parent.iterdir()):
            left.unlink()  # of a process that was killed; the run has a lock, so it has ended
        try:
            with temporary.open("wb") as file:
                for images in batches:
                    payload = np.ascontiguousarray(images).data
                    digest.update(payload)
                    file.write(payload)
                    count, shape = count + len(images), images.shape[1:]
                    fault_injection.failpoint("map:batch")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fault_injection.failpoint("map:written")
        record = _Map(source=source, shape=(count, *shape), sha256=digest.hexdigest())
        write_json(path.with_suffix(".json"), record.model_dump(mode="json"))
        with path.open("rb") as file:
            return _mapped(file, record.shape, workspace)


def _make_folder(workspace: Workspace) -> None:
    """Create the folder, but not those above it: a store that disappeared is not created again."""
    Path(str(workspace.folder)).mkdir(exist_ok=True)


def _temporary_file(folder: Path | None) -> IO[bytes]:
    """Return a file without a buffer: closing it must not fail again on a full disk."""
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def _map_path(workspace: Workspace, source: str) -> Path:
    return Path(str(workspace.folder)) / f"{source}.pixels"


def sha256_of(file: Any) -> str:
    """Return the SHA-256 of a file, which is read a chunk at a time."""
    return hashlib.file_digest(file, "sha256").hexdigest()
