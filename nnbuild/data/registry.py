"""Load a published dataset from the first source that has it, and verify its checksums."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nnbuild.data import archives, idx, npz
from nnbuild.data.arrays import Raw, assemble
from nnbuild.data.dataset import Dataset
from nnbuild.data.download import Progress, UnavailableError, fetch
from nnbuild.data.file_tree import path_exists
from nnbuild.data.published import MNIST, PublishedDataset
from nnbuild.errors import DataError

_TRAINING, _TEST, _SIDE = 60_000, 10_000, 28
_SHAPES = ((_TRAINING, _SIDE, _SIDE), (_TRAINING,), (_TEST, _SIDE, _SIDE), (_TEST,))


def load(
    published: PublishedDataset,
    *,
    data_dir: Path | None,
    cache: Path,
    mirrors: Sequence[str] | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Dataset:
    """Load a published dataset from the first source: `data_dir`, the cache, or a mirror.

    Args:
        published: Dataset to load.
        data_dir: Folder that may contain its files, directly or in a subfolder of its name.
        cache: Folder for downloads.
        mirrors: URLs to use instead of the published ones.
        progress: Callback for the progress of downloads.
        timeout: Seconds to wait for a response of a server.

    Raises:
        UnavailableError: No source has it; the message lists what was tried.
        DataError: `data_dir` or the cache has it, but damaged, incomplete or with other content.
    """
    tried = []
    if data_dir is not None:
        if dataset := _from_data_dir(published, data_dir):
            return dataset
        tried.append(f"{data_dir} (no files of the dataset)")
    own = cache / published.name
    failure: type[DataError] = UnavailableError
    remedy = "put its files into dataset.data_dir, or set dataset.fallback to digits"
    try:
        if dataset := _from_cache(published, own):
            return dataset
        tried.append(f"cache {own} (empty or incomplete)")
    except DataError as error:
        tried.append(f"cache ({error})")
        failure = DataError  # no fallback: a damaged copy should be repaired
        remedy = f"put its files into dataset.data_dir, or remove {own}"
    for mirror in published.mirrors if mirrors is None else mirrors:
        try:
            _download(published, mirror, own, progress, timeout)
        except UnavailableError as error:
            tried.append(str(error))
            continue
        _discard_damaged(published, own)
        if dataset := _from_cache(published, own):
            return dataset
    raise failure(f"{published.name} is unavailable: {'; '.join(tried)}; {remedy}")


def _from_data_dir(published: PublishedDataset, data_dir: Path) -> Dataset | None:
    for folder in (data_dir / published.name, data_dir):
        raw = _read(published, folder)
        if raw is None:
            continue
        if published is not MNIST and _is_mnist(raw):  # its files have the same names
            continue
        try:
            _verify(published, raw, folder)
        except DataError as error:
            hint = f"to train on other data of this format, set dataset.name to {folder}"
            raise DataError(f"{error}; {hint}") from error
        return _assemble(published, raw, str(folder))
    return None


def _from_cache(published: PublishedDataset, folder: Path) -> Dataset | None:
    raw = _read(published, folder) if _is_complete(published, folder) else None
    if raw is None:
        return None
    for name, digest in published.packed.items():
        _verify_packed(digest, folder / f"{name}.gz")
    _verify(published, raw, folder)
    return _assemble(published, raw, str(folder))


def _discard_damaged(published: PublishedDataset, folder: Path) -> None:
    """Remove damaged files that would be preferred to the copy just downloaded."""
    verifiers = {f"{name}.gz": _verifier(published, name) for name in idx.FILES}
    verifiers[f"{published.name}.npz"] = partial(_verify_npz, published)
    for name, verify in verifiers.items():
        try:
            verify(folder / name)
        except DataError:
            with suppress(OSError):
                (folder / name).unlink()


def _is_complete(published: PublishedDataset, folder: Path) -> bool:
    """Return whether all downloads to a folder are complete."""
    archive = folder / f"{published.name}.npz"
    return len(idx.find(folder)) == len(idx.FILES) or path_exists(archive)


def _read(published: PublishedDataset, folder: Path) -> Raw | None:
    """Read the arrays of IDX files or of an .npz in a folder; None if it has neither."""
    archive = folder / f"{published.name}.npz"
    files = idx.find(folder)
    if path_exists(archive) and len(files) < len(idx.FILES):
        return _raw(npz.read(archive))
    return _raw(idx.read_all(folder)) if files else None


def _raw(arrays: Sequence[NDArray[Any]]) -> Raw:
    """Return training images and labels, and test images and labels."""
    train_images, train_labels, test_images, test_labels = arrays
    return Raw(train_images, train_labels, test_images, test_labels)


def _is_mnist(raw: Raw) -> bool:
    labels = raw.test_labels
    if labels is None:
        return False
    return labels.dtype == np.uint8 and idx.payload_digest(labels) == MNIST.payload[idx.FILES[3]]


def _verify(published: PublishedDataset, raw: Raw, where: object) -> None:
    """Refuse arrays that differ from the published ones in shape or checksum."""
    for file, array, shape in zip(idx.FILES, raw[:4], _SHAPES, strict=True):
        if array is None or array.shape != shape:
            raise DataError(
                f"{where}: {file} has shape {getattr(array, 'shape', None)}, "
                f"expected {shape} for {published.name}"
            )
        if file in published.payload and _payload_digest(array) != published.payload[file]:
            raise DataError(
                f"{where}: the payload of {file} differs from the published one of "
                f"{published.name} (SHA-256)"
            )


def _payload_digest(array: NDArray[Any]) -> str:
    narrow = array.astype(np.uint8, copy=False)
    return idx.payload_digest(narrow) if np.array_equal(narrow, array) else ""


def _verify_packed(digest: str, path: Path) -> None:
    with archives.open_regular(path) as file, archives.read_errors_as_data_errors(path):
        actual = hashlib.file_digest(cast("Any", file), "sha256").hexdigest()
    if actual != digest:
        raise DataError(f"{path}: SHA-256 {actual}, expected {digest} as published")


def _assemble(published: PublishedDataset, raw: Raw, source: str) -> Dataset:
    return assemble(
        raw, name=published.name, source=source, where=source, class_names=published.class_names
    )


def _download(
    published: PublishedDataset,
    mirror: str,
    folder: Path,
    progress: Progress | None,
    timeout: float,
) -> None:
    files: dict[str, tuple[str, Callable[[Path], None]]]
    if mirror.endswith(".npz"):
        if not published.payload:
            raise UnavailableError(
                f"{mirror}: the payload of {published.name} has no published checksum to verify"
            )
        files = {mirror: (f"{published.name}.npz", partial(_verify_npz, published))}
    else:
        files = {
            f"{mirror.rstrip('/')}/{name}.gz": (f"{name}.gz", _verifier(published, name))
            for name in idx.FILES
        }
    for url, (name, verify) in files.items():
        fetch(url, folder / name, verify, progress=progress, timeout=timeout)


def _verify_npz(published: PublishedDataset, path: Path) -> None:
    _verify(published, _raw(npz.read(path)), path)


def _verifier(published: PublishedDataset, name: str) -> Callable[[Path], None]:
    if name in published.packed:
        return partial(_verify_packed, published.packed[name])
    return partial(_verify_payload, published, name)


def _verify_payload(published: PublishedDataset, name: str, path: Path) -> None:
    digest = idx.payload_digest(idx.read(path))
    if digest != published.payload[name]:
        raise DataError(
            f"{path}: payload SHA-256 {digest}, expected {published.payload[name]} as published"
        )
