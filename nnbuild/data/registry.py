"""Loading a named dataset from the first place that has it, and verifying that it is what was published."""

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
from nnbuild.data.published import MNIST, Named
from nnbuild.errors import DataError

_TRAINING, _TEST, _SIDE = 60_000, 10_000, 28
_SHAPES = ((_TRAINING, _SIDE, _SIDE), (_TRAINING,), (_TEST, _SIDE, _SIDE), (_TEST,))


def load(
    named: Named,
    *,
    data_dir: Path | None,
    cache: Path,
    mirrors: Sequence[str] | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Dataset:
    """A named dataset from the first place that has it: `data_dir`, the cache, the mirrors in order.

    Raises:
        UnavailableError: no place has it; the message lists what was tried.
        DataError: `data_dir` has it, but damaged, incomplete or with another content.
    """
    tried = []
    if data_dir is not None:
        if dataset := _from_data_dir(named, data_dir):
            return dataset
        tried.append(f"{data_dir} (has none of its files)")
    own = cache / named.name
    failure: type[DataError] = UnavailableError
    remedy = "put its files into --data-dir, or pass --fallback digits"
    try:
        if dataset := _from_cache(named, own):
            return dataset
        tried.append(f"cache {own} (empty or unfinished)")
    except DataError as error:
        tried.append(f"cache ({error})")
        failure = DataError  # what is there, but damaged, is no reason to train on something else
        remedy = f"put its files into --data-dir, or remove {own}"
    for mirror in named.mirrors if mirrors is None else mirrors:
        try:
            _download(named, mirror, own, progress, timeout)
        except UnavailableError as error:
            tried.append(str(error))
            continue
        _discard_damaged(named, own)
        if dataset := _from_cache(named, own):
            return dataset
    raise failure(f"{named.name} was found in no place: {'; '.join(tried)}; {remedy}")


def _from_data_dir(named: Named, data_dir: Path) -> Dataset | None:
    for folder in (data_dir / named.name, data_dir):
        raw = _read(named, folder)
        if raw is None or (
            named is not MNIST and _is_mnist(raw)
        ):  # the files of both have the same names
            continue
        try:
            _verify(named, raw, folder)
        except DataError as error:
            hint = (
                f"to train on other data of that form, pass the folder itself: --dataset {folder}"
            )
            raise DataError(f"{error}; {hint}") from error
        return _assemble(named, raw, str(folder))
    return None


def _from_cache(named: Named, folder: Path) -> Dataset | None:
    raw = _read(named, folder) if _is_complete(named, folder) else None
    if raw is None:
        return None
    for name, digest in named.packed.items():
        _verify_packed(digest, folder / f"{name}.gz")
    _verify(named, raw, folder)
    return _assemble(named, raw, str(folder))


def _discard_damaged(named: Named, folder: Path) -> None:
    """Remove what would be found before the sound copy that has just arrived."""
    verifiers = {f"{name}.gz": _verifier(named, name) for name in idx.FILES}
    verifiers[f"{named.name}.npz"] = partial(_verify_npz, named)
    for name, verify in verifiers.items():
        try:
            verify(folder / name)
        except DataError:
            with suppress(OSError):
                (folder / name).unlink()


def _is_complete(named: Named, folder: Path) -> bool:
    """Whether no download into a folder was broken off."""
    archive = folder / f"{named.name}.npz"
    return len(idx.find(folder)) == len(idx.FILES) or path_exists(archive)


def _read(named: Named, folder: Path) -> Raw | None:
    """The arrays that a folder holds as IDX files or as an .npz; None if it has no file of either."""
    archive = folder / f"{named.name}.npz"
    found = idx.find(folder)
    if path_exists(archive) and len(found) < len(idx.FILES):
        return Raw(*npz.read(archive))
    return Raw(*idx.read_all(folder)) if found else None


def _is_mnist(raw: Raw) -> bool:
    labels = raw.test_labels
    if labels is None:
        return False
    return labels.dtype == np.uint8 and idx.payload_digest(labels) == MNIST.payload[idx.FILES[3]]


def _verify(named: Named, raw: Raw, where: object) -> None:
    """Refuse arrays that are not the published ones, as far as that can be told from their payload."""
    for file, array, shape in zip(idx.FILES, raw[:4], _SHAPES, strict=True):
        if array is None or array.shape != shape:
            raise DataError(
                f"{where}: {file} has shape {getattr(array, 'shape', None)}, {named.name}'s has {shape}"
            )
        if file in named.payload and _payload_digest(array) != named.payload[file]:
            raise DataError(
                f"{where}: the payload of {file} is not {named.name}'s published one (sha256 differs)"
            )


def _payload_digest(array: NDArray[Any]) -> str:
    narrow = array.astype(np.uint8, copy=False)
    return idx.payload_digest(narrow) if np.array_equal(narrow, array) else ""


def _verify_packed(digest: str, path: Path) -> None:
    with archives.open_regular(path) as file, archives.read_errors_as_data_errors(path):
        given = hashlib.file_digest(cast("Any", file), "sha256").hexdigest()
    if given != digest:
        raise DataError(f"{path}: sha256 {given}, published is {digest}")


def _assemble(named: Named, raw: Raw, source: str) -> Dataset:
    return assemble(
        raw, name=named.name, source=source, where=source, class_names=named.class_names
    )


def _download(
    named: Named, mirror: str, folder: Path, progress: Progress | None, timeout: float
) -> None:
    if mirror.endswith(".npz"):
        if not named.payload:
            raise UnavailableError(
                f"{mirror}: the payload of {named.name} has no published checksum to verify it by"
            )
        fetch(
            mirror,
            folder / f"{named.name}.npz",
            partial(_verify_npz, named),
            progress=progress,
            timeout=timeout,
        )
        return
    for name in idx.FILES:
        url = f"{mirror.rstrip('/')}/{name}.gz"
        fetch(
            url, folder / f"{name}.gz", _verifier(named, name), progress=progress, timeout=timeout
        )


def _verify_npz(named: Named, path: Path) -> None:
    _verify(named, Raw(*npz.read(path)), path)


def _verifier(named: Named, name: str) -> Callable[[Path], None]:
    if name in named.packed:
        return partial(_verify_packed, named.packed[name])
    return partial(_verify_payload, named, name)


def _verify_payload(named: Named, name: str, path: Path) -> None:
    digest = idx.payload_digest(idx.read(path))
    if digest != named.payload[name]:
        raise DataError(f"{path}: payload sha256 {digest}, published is {named.payload[name]}")
