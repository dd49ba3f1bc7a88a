"""The datasets that nnbuild knows by name: MNIST and two of its form, their addresses and checksums."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.data import archives, idx, npz
from nnbuild.data.arrays import Raw, assemble
from nnbuild.data.dataset import Dataset
from nnbuild.data.download import Progress, UnavailableError, fetch
from nnbuild.errors import DataError

_TRAINING, _TEST, _SIDE, _CLASSES = 60_000, 10_000, 28, 10
_SHAPES = ((_TRAINING, _SIDE, _SIDE), (_TRAINING,), (_TEST, _SIDE, _SIDE), (_TEST,))


@dataclass(frozen=True)
class Named:
    """A published dataset in MNIST's form: 60,000 and 10,000 images of 28 by 28 grey pixels, ten classes.

    Attributes:
        name: as it is given on the command line.
        class_names: in the order of the labels.
        mirrors: addresses in the order in which they are tried: of an .npz, or of a folder of gzipped IDX.
        payload: sha256 of the four decompressed IDX files, if they are published.
        packed: sha256 of the four gzipped IDX files, if they are published.
    """

    name: str
    class_names: tuple[str, ...]
    mirrors: tuple[str, ...]
    payload: Mapping[str, str] = field(default_factory=dict)
    packed: Mapping[str, str] = field(default_factory=dict)


def _by_file(*digests: str) -> Mapping[str, str]:
    return dict(zip(idx.FILES, digests, strict=True))


MNIST = Named(
    "mnist",
    tuple("0123456789"),
    (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    payload=_by_file(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

# Checksums of these two: TensorFlow Datasets, url_checksums/fashion_mnist.txt and url_checksums/kmnist.txt.
FASHION_MNIST = Named(
    "fashion-mnist",
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    packed=_by_file(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)

KMNIST = Named(
    "kmnist",
    ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    packed=_by_file(
        "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    ),
)

NAMED = {named.name: named for named in (MNIST, FASHION_MNIST, KMNIST)}


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
    try:
        if dataset := _from_cache(named, own):
            return dataset
        tried.append(f"cache {own} (empty)")
    except DataError as error:  # ours to replace, unlike the user's files
        tried.append(f"cache ({error})")
        _discard_damaged(named, own)
    for mirror in named.mirrors if mirrors is None else mirrors:
        try:
            _download(named, mirror, own, progress, timeout)
            if dataset := _from_cache(named, own):
                return dataset
        except UnavailableError as error:
            tried.append(str(error))
    raise UnavailableError(
        f"{named.name} was found in no place: {'; '.join(tried)};"
        " put its files into --data-dir, or pass --fallback digits"
    )


def _from_data_dir(named: Named, data_dir: Path) -> Dataset | None:
    for folder in (data_dir / named.name, data_dir):
        raw = _read(named, folder)
        if raw is None or (named is not MNIST and _is_mnist(raw)):  # the files of both have the same names
            continue
        try:
            _verify(named, raw, folder)
        except DataError as error:
            hint = f"to train on other data of that form, pass the folder itself: --dataset {folder}"
            raise DataError(f"{error}; {hint}") from error
        return _assemble(named, raw, str(folder))
    return None


def _from_cache(named: Named, folder: Path) -> Dataset | None:
    raw = _read(named, folder)
    if raw is None:
        return None
    for name, digest in named.packed.items():
        _verify_packed(digest, folder / f"{name}.gz")
    _verify(named, raw, folder)
    return _assemble(named, raw, str(folder))


def _discard_damaged(named: Named, folder: Path) -> None:
    """Make room for sound copies, and keep what is sound; where that cannot be done, the download says so."""
    verifiers = {f"{name}.gz": _verifier(named, name) for name in idx.FILES}
    verifiers[f"{named.name}.npz"] = partial(_verify_npz, named)
    for name, verify in verifiers.items():
        try:
            verify(folder / name)
        except DataError:
            with suppress(OSError):
                (folder / name).unlink()


def _read(named: Named, folder: Path) -> Raw | None:
    """The arrays that a folder holds as IDX files or as an .npz; None if it has no file of either."""
    archive = folder / f"{named.name}.npz"
    found = idx.find(folder)
    if archive.exists() and len(found) < len(idx.FILES):
        return Raw(*npz.read(archive))
    return Raw(*idx.read_all(folder)) if found else None


def _is_mnist(raw: Raw) -> bool:
    labels = raw.test_labels
    return labels.dtype == np.uint8 and idx.payload_digest(labels) == MNIST.payload[idx.FILES[3]]


def _verify(named: Named, raw: Raw, where: object) -> None:
    """Refuse arrays that are not the published ones, as far as that can be told from their payload."""
    for file, array, shape in zip(idx.FILES, raw, _SHAPES, strict=True):
        if array.shape != shape:
            raise DataError(f"{where}: {file} has shape {array.shape}, {named.name}'s has {shape}")
        if file in named.payload and _payload_digest(array) != named.payload[file]:
            raise DataError(
                f"{where}: the payload of {file} is not {named.name}'s published one (sha256 differs)"
            )


def _payload_digest(array: NDArray[Any]) -> str:
    narrow = array.astype(np.uint8, copy=False)
    return idx.payload_digest(narrow) if np.array_equal(narrow, array) else ""


def _verify_packed(digest: str, path: Path) -> None:
    with archives.translated(path), path.open("rb") as file:
        given = hashlib.file_digest(file, "sha256").hexdigest()
    if given != digest:
        raise DataError(f"{path}: sha256 {given}, published is {digest}")


def _assemble(named: Named, raw: Raw, source: str) -> Dataset:
    return assemble(raw, name=named.name, source=source, where=source, class_names=named.class_names)


def _download(named: Named, mirror: str, folder: Path, progress: Progress | None, timeout: float) -> None:
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
        fetch(url, folder / f"{name}.gz", _verifier(named, name), progress=progress, timeout=timeout)


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
