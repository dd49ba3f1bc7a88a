"""Published datasets: order of the sources, verification, and the fallback.

The published data need a network, so most tests publish data of their own in MNIST's form.
"""

import gzip
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from data_files import IDX_NAMES, Arrays, idx_bytes, serving, write_idx, write_npz

from nnbuild.data import idx, published, registry, sources
from nnbuild.data.download import UnavailableError
from nnbuild.errors import DataError

FOLDER = "/data/"


def in_mnists_form(seed: int) -> Arrays:
    """60,000 and 10,000 images that compress well: a pattern for each class."""
    patterns = np.random.default_rng(seed).integers(0, 256, (10, 28, 28, 1), np.uint8)
    labels = np.arange(70_000) % 10
    images = patterns[labels]
    return Arrays(images[:60_000], labels[:60_000], images[60_000:], labels[60_000:])


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return in_mnists_form(1)


@pytest.fixture(scope="module")
def packed(arrays) -> dict[str, bytes]:
    payloads = [idx_bytes(array[..., 0] if array.ndim == 4 else array) for array in arrays]
    return {
        name: gzip.compress(payload, 1, mtime=0)
        for name, payload in zip(IDX_NAMES, payloads, strict=True)
    }


@pytest.fixture(scope="module")
def own(packed) -> published.PublishedDataset:
    """MNIST with these arrays as its published content."""
    digests = {
        name: sha256(gzip.decompress(content)).hexdigest() for name, content in packed.items()
    }
    return replace(published.MNIST, payload=digests)


@pytest.fixture(scope="module")
def kin(packed) -> published.PublishedDataset:
    """Fashion-MNIST with these arrays, identified by its packed files."""
    return replace(
        published.FASHION_MNIST,
        packed={name: sha256(content).hexdigest() for name, content in packed.items()},
    )


@pytest.fixture
def server(packed):
    with serving({f"{FOLDER}{name}.gz": content for name, content in packed.items()}) as running:
        yield running


def load(which, tmp_path, **options):
    return registry.load(
        which,
        **({"data_dir": None, "cache": tmp_path / "cache", "mirrors": [], "timeout": 5} | options),
    )


@pytest.mark.parametrize("place", ["direct", "mnist"])
@pytest.mark.parametrize("form", ["idx", "gz", "dotted.gz", "npz"])
def test_data_dir_is_read_in_every_format(tmp_path, arrays, own, place, form):
    folder = tmp_path / "data" / ("" if place == "direct" else place)
    folder.mkdir(parents=True)
    if form == "npz":
        write_npz(folder / "mnist.npz", arrays)
    else:
        write_idx(folder, arrays, gzipped=form.endswith("gz"), dotted=form.startswith("dotted"))
    dataset = load(own, tmp_path, data_dir=tmp_path / "data")
    assert dataset.name == "mnist"
    np.testing.assert_array_equal(dataset.test.images, arrays.test_images)
    assert not (tmp_path / "cache").exists()


def test_mirrors_fill_the_cache_once(tmp_path, arrays, own, server):
    told = []
    dataset = load(
        own, tmp_path, mirrors=[server.address + FOLDER], progress=lambda *now: told.append(now)
    )
    np.testing.assert_array_equal(dataset.train.images, arrays.train_images)
    assert sorted({name for name, _, _ in told}) == sorted(f"{name}.gz" for name in IDX_NAMES)
    asked = len(server.requests)
    assert load(own, tmp_path, mirrors=[server.address + FOLDER]).digest == dataset.digest
    assert load(own, tmp_path).digest == dataset.digest
    assert len(server.requests) == asked == 4


def test_next_mirror_is_asked_on_failure(tmp_path, arrays, own, server):
    other = in_mnists_form(2)
    server.files["/lies/train-images-idx3-ubyte.gz"] = gzip.compress(
        idx_bytes(other.train_images[..., 0]), 1
    )
    server.files["/broken/mnist.npz"] = b"PK\x03\x04 and no more"
    write_npz(tmp_path / "mnist.npz", arrays)
    server.files["/good/mnist.npz"] = (tmp_path / "mnist.npz").read_bytes()
    places = [
        "/absent/mnist.npz",
        "/absent/",
        "/lies/",
        "/broken/mnist.npz",
        "/good/mnist.npz",
        "/never/",
    ]
    dataset = load(own, tmp_path, mirrors=[server.address + place for place in places])
    np.testing.assert_array_equal(dataset.train.images, arrays.train_images)
    assert not any(path.startswith("/never") for path, _ in server.requests)
    assert [path.name for path in (tmp_path / "cache" / "mnist").iterdir()] == ["mnist.npz"]


def test_all_failed_sources_are_listed(tmp_path, own, server):
    (tmp_path / "data").mkdir()
    mirrors = [f"{server.address}/one/", f"{server.address}/two/mnist.npz"]
    with pytest.raises(UnavailableError) as caught:
        load(own, tmp_path, data_dir=tmp_path / "data", mirrors=mirrors)
    message = str(caught.value)
    for place in (
        tmp_path / "data",
        tmp_path / "cache",
        *mirrors,
        "dataset.data_dir",
        "dataset.fallback to digits",
    ):
        assert str(place) in message
    assert "\n" not in message


def test_damaged_files_of_user_are_kept(tmp_path, arrays, own, server):
    folder = write_idx(tmp_path / "data", arrays)
    images = folder / "train-images-idx3-ubyte"
    content = bytearray(images.read_bytes())
    content[5000] ^= 1
    for broken in (bytes(content), bytes(content[:-1]), b""):
        images.write_bytes(broken)
        with pytest.raises(DataError) as caught:
            load(own, tmp_path, data_dir=folder, mirrors=[server.address + FOLDER])
        assert not isinstance(caught.value, UnavailableError)
        assert str(folder) in str(caught.value)
        assert images.read_bytes() == broken
    images.unlink()
    with pytest.raises(DataError, match="lacks train-images-idx3-ubyte"):
        load(own, tmp_path, data_dir=folder, mirrors=[server.address + FOLDER])
    assert server.requests == []


def test_other_data_as_mnist_are_refused(tmp_path, own):
    folder = write_idx(tmp_path / "data", in_mnists_form(2))
    with pytest.raises(DataError, match=f"published one .*set dataset.name to {folder}"):
        load(own, tmp_path, data_dir=folder)
    assert sources.load(str(folder), data_dir=None, cache=tmp_path).name == "data"


def test_a_damaged_cache_is_replaced(tmp_path, own, server, arrays):
    mirrors = [server.address + FOLDER]
    digest = load(own, tmp_path, mirrors=mirrors).digest
    cached = tmp_path / "cache" / "mnist" / "train-labels-idx1-ubyte.gz"
    for broken in (cached.read_bytes()[:-10], gzip.compress(idx_bytes(np.zeros(60_000)))):
        cached.write_bytes(broken)
        assert load(own, tmp_path, mirrors=mirrors).digest == digest
    write_npz(tmp_path / "mnist.npz", arrays)
    server.files["/npz/mnist.npz"] = (tmp_path / "mnist.npz").read_bytes()
    cached.write_bytes(b"broken")
    assert load(own, tmp_path, mirrors=[f"{server.address}/npz/mnist.npz"]).digest == digest
    assert load(own, tmp_path).digest == digest
    cached.with_name("mnist.npz").write_bytes(b"broken")
    for _ in range(2):  # no fallback, neither now nor in the next run
        with pytest.raises(DataError) as caught:
            load(own, tmp_path, mirrors=[f"{server.address}/absent/"])
        assert not isinstance(caught.value, UnavailableError)
        assert "mnist.npz" in str(caught.value)


def test_incomplete_cache_is_completed(tmp_path, own, server):
    images = server.files.pop(f"{FOLDER}t10k-images-idx3-ubyte.gz")
    with pytest.raises(UnavailableError):
        load(own, tmp_path, mirrors=[server.address + FOLDER])
    server.files[f"{FOLDER}t10k-images-idx3-ubyte.gz"] = images
    server.requests.clear()
    load(own, tmp_path, mirrors=[server.address + FOLDER])
    asked = [path.removeprefix(FOLDER) for path, _ in server.requests]
    assert asked == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]


def test_packed_digests_identify_datasets(tmp_path, kin, arrays, server):
    dataset = load(kin, tmp_path, mirrors=[server.address + FOLDER])
    assert dataset.name == "fashion-mnist"
    assert dataset.class_names[9] == "Ankle boot"
    server.files[f"{FOLDER}t10k-labels-idx1-ubyte.gz"] = gzip.compress(
        idx_bytes(arrays.test_labels), 9
    )
    with pytest.raises(UnavailableError, match="published"):
        load(kin, tmp_path / "again", mirrors=[server.address + FOLDER])


def test_mnist_is_not_taken_for_fashion(tmp_path, kin, arrays, own, monkeypatch):
    monkeypatch.setattr(registry, "MNIST", own)
    folder = write_idx(tmp_path / "data", arrays)
    with pytest.raises(UnavailableError):
        load(kin, tmp_path, data_dir=folder)
    other = in_mnists_form(3)
    labels = other.test_labels[::-1].copy()
    write_idx(folder / "fashion-mnist", replace(other, test_labels=labels))
    assert load(kin, tmp_path, data_dir=folder).name == "fashion-mnist"


def test_shapes_in_data_dir_are_checked(tmp_path, kin):
    few = in_mnists_form(1)
    write_idx(tmp_path / "data", replace(few, train_images=few.train_images[:59_999]))
    with pytest.raises(DataError, match="59999, 28, 28"):
        load(kin, tmp_path, data_dir=tmp_path / "data")


def test_fallback_needs_unavailable_data(tmp_path):
    options = {"cache": tmp_path / "cache", "fallback": "digits", "mirrors": {"mnist": []}}
    dataset = sources.load("mnist", data_dir=tmp_path / "absent", **options)
    assert dataset.name == "digits"
    assert "fallback because mnist is unavailable" in dataset.source
    damaged = tmp_path / "data"
    damaged.mkdir()
    (damaged / "mnist.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"mnist\.npz"):
        sources.load("mnist", data_dir=damaged, **options)
    with pytest.raises(UnavailableError):
        sources.load("mnist", data_dir=None, **(options | {"fallback": None}))
    with pytest.raises(DataError):
        sources.load("./absent", data_dir=None, **options)


def test_published_entries_are_valid():
    assert set(published.PUBLISHED) == {"mnist", "fashion-mnist", "kmnist"}
    for known in published.PUBLISHED.values():
        assert len(known.class_names) == 10
        digests = known.payload or known.packed
        assert tuple(digests) == idx.FILES == IDX_NAMES
        assert all(len(digest) == 64 and int(digest, 16) for digest in digests.values())
        assert all(mirror.endswith((".npz", "/")) for mirror in known.mirrors)


def test_real_mnist_is_the_published_one(tmp_path):
    given = os.environ.get("NNBUILD_DATA_DIR", "")
    if not idx.find(Path(given)):
        pytest.skip("NNBUILD_DATA_DIR names no folder with MNIST's files")
    dataset = sources.load("mnist", data_dir=Path(given), cache=tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.image_shape) == (
        60_000,
        10_000,
        (28, 28, 1),
    )
    assert dataset.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.train.images.mean() == pytest.approx(33.3184, abs=1e-4)
