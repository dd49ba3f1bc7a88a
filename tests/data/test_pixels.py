"""Pixels in a mapped file are those in memory, and no failure leaves a file that is not whole."""

import errno
import gzip
import io
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import (
    PARQUET_FORMS,
    idx_bytes,
    tiny,
    write_idx,
    write_parquet_folder,
    write_picture_folder,
)

from nnbuild.data import (
    archives,
    dataset_reader,
    dataset_writer,
    parquet,
    pixel_scale,
    pixels,
)
from nnbuild.data.dataset import Dataset, Split, hold_out
from nnbuild.data.formats import load_path, open_stream
from nnbuild.data.options import ReadOptions
from nnbuild.data.pixels import PixelWriter, Workspace, is_mapped
from nnbuild.data.preprocessing import Preprocessing
from nnbuild.data.streams import StreamOptions
from nnbuild.errors import ConfigError, DataError, StoreError
from nnbuild.runtime.cgroups import available_memory


@pytest.fixture
def disk(tmp_path):
    """Return a workspace that holds nothing in memory."""
    return Workspace(tmp_path / "pixels", limit=0)


def images(count=50, shape=(5, 4, 3)):
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


def mapped(array, workspace):
    writer = PixelWriter(workspace)
    writer.append(array)
    return writer.finish()


def equal(one: Dataset, other: Dataset) -> bool:
    return one.digest == other.digest and all(
        np.array_equal(one.splits[name].labels, other.splits[name].labels)
        and np.array_equal(one.splits[name].image_digests, other.splits[name].image_digests)
        for name in one.splits
    )


@pytest.mark.parametrize("limit", [0, 200, 10**9])
@pytest.mark.parametrize("batch", [1, 7, 50])
def test_writer_returns_what_it_got(tmp_path, limit, batch):
    array = images()
    writer = PixelWriter(Workspace(tmp_path / "pixels", limit))
    for start in range(0, len(array), batch):
        writer.append(array[start : start + batch])
    found = writer.finish()
    assert np.array_equal(found, array)
    assert is_mapped(found) == (limit < array.nbytes)
    assert not list(tmp_path.rglob("*.pixels"))


def test_file_of_pixels_has_no_name(disk):
    found = mapped(images(), disk)
    assert is_mapped(found)
    assert list(disk.folder.iterdir()) == []


def test_mapped_pixels_are_read_only(disk):
    with pytest.raises(ValueError, match="read-only"):
        mapped(images(), disk)[0] = 0


@pytest.mark.parametrize(
    "rows",
    [np.arange(50) % 3 == 0, np.array([4, 4, 49, 0]), slice(3, 9), np.zeros(50, bool)],
    ids=["bools", "numbers", "slice", "none"],
)
def test_selection_equals_memory(disk, monkeypatch, rows):
    monkeypatch.setattr(pixels, "_CHUNK_BYTES", 130)
    split = Split(images(), np.arange(50, dtype=np.int16))
    other = replace(split, images=mapped(split.images, disk)).select(rows)
    assert np.array_equal(other.images, split.select(rows).images)
    assert np.array_equal(other.labels, split.select(rows).labels)
    assert is_mapped(other.images) == bool(len(other))


def test_results_of_operations_are_arrays(disk):
    array = mapped(images(), disk)
    for found in (array + 1, array.max(axis=1), array[np.array([1])], array == 0):
        assert type(found) is np.ndarray
    assert array.mean() == images().mean()


@pytest.mark.parametrize("shape", [(5, 4, 3), (64, 64, 3)])
def test_gathered_images_are_the_rows(disk, shape):
    array = images(shape=shape)
    rows = np.array([0, 3, 3, 49], np.int32)
    whole = mapped(array, disk)
    assert np.array_equal(whole.gather(rows), array[rows])
    assert np.array_equal(whole[10:].gather(rows[:3]), array[10:][rows[:3]])


def test_held_out_images_are_the_same(disk):
    split = Split(images(200), np.zeros(200, np.int16))
    for one, other in zip(
        hold_out(split), hold_out(replace(split, images=mapped(split.images, disk))), strict=True
    ):
        assert np.array_equal(one.images, other.images)
        assert is_mapped(other.images)


@pytest.mark.parametrize("form", PARQUET_FORMS)
def test_parquet_in_batches_is_the_same(tmp_path, disk, monkeypatch, form):
    folder = write_parquet_folder(tmp_path / "source", tiny(), form)
    expected = parquet.load_folder(folder)
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 200)
    found = parquet.load_folder(folder, ReadOptions(workspace=disk))
    assert is_mapped(found.train.images)
    assert equal(found, expected)
    assert found.pixel_scales == expected.pixel_scales


KINDS = {
    "uint8": lambda images: images,
    ">i4": lambda images: images.astype(">i4"),
    "float32": lambda images: (images / 255).astype(np.float32),
    "float64": lambda images: images.astype(np.float64),
}


def same_once_stored(path, disk, expected, folder):
    """Return whether a source gives the same files in the store from a mapped file."""
    found = load_path(path, ReadOptions(workspace=disk))
    assert is_mapped(found.train.images)
    assert equal(found, expected)
    assert found.pixel_scales == expected.pixel_scales
    for dataset, name in ((expected, "memory"), (found, "mapped")):
        dataset_writer.write_dataset(dataset, folder / name)
    return all(
        (folder / "mapped" / path.name).read_bytes() == path.read_bytes()
        for path in (folder / "memory").iterdir()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_the_same(tmp_path, disk, monkeypatch, kind, order, save):
    arrays = tiny(shape=(6, 5, 3))
    images, tests = (
        np.asarray(KINDS[kind](each), order=order)
        for each in (arrays.train_images, arrays.test_images)
    )
    path = tmp_path / "a.npz"
    one_hot = np.eye(4)[arrays.test_labels]
    save(path, x_train=images, y_train=arrays.train_labels, x_test=tests, y_test=one_hot)
    expected = load_path(path)
    monkeypatch.setattr(archives, "_CHUNK", 100)
    monkeypatch.setattr(pixel_scale, "_BATCH_BYTES", 500)
    assert same_once_stored(path, disk, expected, tmp_path)


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("prefix", ["", "emnist-letters-"])
def test_idx_is_the_same(tmp_path, disk, monkeypatch, gzipped, prefix):
    folder = write_idx(tmp_path / "idx", tiny(shape=(6, 5, 1)), gzipped=gzipped)
    for path in folder.iterdir() if prefix else ():
        path.rename(path.with_name(prefix + path.name.replace("t10k", "test")))
    expected = load_path(folder)
    monkeypatch.setattr(archives, "_CHUNK", 100)
    assert same_once_stored(folder, disk, expected, tmp_path)


@pytest.mark.parametrize("limit", [0, 3000, 10**9])
def test_floats_in_parquet_are_the_same(tmp_path, monkeypatch, limit):
    arrays = tiny()
    for split in ("train", "test"):
        images = getattr(arrays, f"{split}_images").reshape(-1, 36) / 255
        labels = getattr(arrays, f"{split}_labels")
        table = pa.table({"image": list(images.astype(np.float32)), "label": labels})
        (tmp_path / "source").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "source" / f"{split}.parquet")
    expected = load_path(tmp_path / "source")
    assert expected.pixel_scales["train"] == "float32 from 0 to 1"
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 1000)
    found = load_path(tmp_path / "source", ReadOptions(workspace=Workspace(tmp_path / "p", limit)))
    assert equal(found, expected)
    assert found.pixel_scales == expected.pixel_scales


@pytest.mark.parametrize("form", ["npz", "stored npz", "idx", "idx.gz"])
@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_truncated_array_leaves_no_file(tmp_path, disk, form, cut):
    if "npz" in form:
        save = np.savez if form == "stored npz" else np.savez_compressed
        path = damaged = tmp_path / "a.npz"
        save(path, x_train=tiny().train_images, y_train=tiny().train_labels)
    else:
        path = write_idx(tmp_path / "idx", tiny(), gzipped=form == "idx.gz")
        damaged = next(path.glob("train-images*"))
    payload = damaged.read_bytes()
    damaged.write_bytes(payload[: int(len(payload) * cut)])
    with pytest.raises(DataError) as caught:
        load_path(path, ReadOptions(workspace=disk))
    assert "\n" not in str(caught.value)
    assert not disk.folder.exists() or not list(disk.folder.iterdir())


def test_damage_found_late_leaves_no_file(tmp_path, disk, monkeypatch):
    """A flipped byte is noticed by the checksum, after all the pixels were written."""
    path = tmp_path / "a.npz"
    images = tiny(shape=(60, 60, 1)).train_images
    np.savez(path, x_train=images, y_train=tiny().train_labels)
    payload = bytearray(path.read_bytes())
    payload[images.nbytes // 2] ^= 1
    path.write_bytes(payload)
    monkeypatch.setattr(archives, "_CHUNK", 1000)
    with pytest.raises(DataError, match="Bad CRC-32"):
        load_path(path, ReadOptions(workspace=disk))
    assert list(disk.folder.iterdir()) == []


def test_changing_floats_are_refused(tmp_path, disk, monkeypatch):
    images = list((tiny().train_images.reshape(-1, 36) / 255).astype(np.float32))
    table = pa.table({"image": images, "label": tiny().train_labels})
    pq.write_table(table, tmp_path / "a.parquet")
    white_of_floats = pixel_scale.white_of_floats

    def changing(*arguments):
        white = white_of_floats(*arguments)
        pq.write_table(table.slice(1), tmp_path / "a.parquet")
        return white

    monkeypatch.setattr(pixel_scale, "white_of_floats", changing)
    with pytest.raises(DataError, match="changed while it was read"):
        load_path(tmp_path / "a.parquet", ReadOptions(workspace=disk))


def array_files(folder):
    """Write the same images in the formats that are one array, in several types and layouts."""
    pixels = np.random.default_rng(2).integers(0, 256, (70, 6, 6, 3), np.uint8)
    for name, kind in {"u1": np.uint8, "f4": np.float32, "i2": np.int16}.items():
        np.savez_compressed(folder / f"{name}.npz", images=pixels.astype(kind))
    np.savez(folder / "fortran.npz", images=np.asfortranarray(pixels))
    idx = idx_bytes(pixels[..., 0])
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    (folder / "emnist-letters-test-images-idx3-ubyte").write_bytes(idx)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("size", [None, (4, 4)])
def test_scored_array_is_the_same_mapped(tmp_path, disk, size):
    (tmp_path / "in").mkdir()
    for path in array_files(tmp_path / "in"):
        shape = (*(size or (6, 6)), 3 if path.suffix == ".npz" else 1)
        settings = None if size is None else Preprocessing(image_size=size)
        options = StreamOptions(shape, preprocessing=settings)
        held, stream = (
            open_stream(str(path), each) for each in (options, replace(options, workspace=disk))
        )
        assert stream.identity() == held.identity()
        assert (stream.scales(), stream.chunks()) == (held.scales(), held.chunks())
        for ours, theirs in zip(batches(stream), batches(held), strict=True):
            assert type(ours.images) is np.ndarray
            np.testing.assert_array_equal(ours.images, theirs.images)
            np.testing.assert_array_equal(ours.example_ids, theirs.example_ids)
    assert list(disk.folder.iterdir()) == []


def batches(stream):
    return [batch for chunk in stream.chunks() for batch in stream.read(chunk, 32)]


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_memory_does_not_grow_with_scored_npz(tmp_path, kind):
    peaks = []
    for count in (150, 300):
        path = tmp_path / f"{count}.npz"
        np.savez(path, images=KINDS[kind](np.full((count, 256, 256, 3), 200, np.uint8)))
        options = StreamOptions((256, 256, 3), workspace=Workspace(tmp_path / "pixels", 1 << 20))
        tracemalloc.start()
        try:
            stream = open_stream(str(path), options)
            assert stream.identity()[0][1] == count
            for chunk in stream.chunks():
                for batch in stream.read(chunk, 16):
                    assert batch.images.max() == 200
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (4 << 20)


def peak_of_reading(path, folder) -> int:
    """Return the largest memory of NumPy and Python while a source is read and stored."""
    tracemalloc.start()
    dataset = load_path(path, ReadOptions(workspace=Workspace(folder / "pixels", 1 << 20)))
    dataset_writer.write_dataset(dataset, folder / "stored")
    try:
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_memory_does_not_grow_with_npz(tmp_path, kind):
    peaks = []
    for count in (150, 300):  # both are more than a chunk
        # Rows of 192 KB, so that the pixels are much more than digests and labels are.
        images = np.zeros((count, 256, 256, 3), np.uint8)
        images[:, 0, 0, 0] = np.arange(count) % 250 + 1
        labels = np.arange(count) % 2
        path = tmp_path / f"{count}.npz"
        np.savez(path, x_train=KINDS[kind](images), y_train=labels)
        (tmp_path / str(count)).mkdir()
        peaks.append(peak_of_reading(path, tmp_path / str(count)))
    # The pixels of the larger set take 29 MB more as uint8, 118 MB more as float32.
    assert peaks[1] < peaks[0] + (4 << 20)


@pytest.mark.parametrize("settings", [None, Preprocessing(image_size=(8, 9), channels=3)])
def test_pictures_are_the_same(tmp_path, disk, monkeypatch, settings):
    folder = write_picture_folder(tmp_path / "source", tiny())
    expected = load_path(folder, ReadOptions(preprocessing=settings))
    monkeypatch.setattr(pixels, "_CHUNK_BYTES", 300)
    found = load_path(folder, ReadOptions(preprocessing=settings, workspace=disk))
    assert is_mapped(found.train.images)
    assert equal(found, expected)


@pytest.fixture
def stored(tmp_path):
    arrays = tiny(shape=(6, 5, 3))
    kept = pa.table({"site": [f"s{row % 3}" for row in range(40)]})
    dataset = Dataset(
        "tiny",
        Split(arrays.train_images, arrays.train_labels.astype(np.int16), kept),
        Split(arrays.test_images, arrays.test_labels.astype(np.int16), kept.slice(0, 20)),
        ("a", "b", "c", "d"),
        "made up",
    )
    dataset_writer.write_dataset(dataset, tmp_path / "stored")
    return tmp_path / "stored"


@pytest.mark.parametrize("keeps", [False, True])
def test_stored_dataset_is_the_same(stored, disk, keeps):
    found = dataset_reader.read_dataset(stored, replace(disk, keeps_maps=keeps))
    assert is_mapped(found.train.images)
    assert equal(found, dataset_reader.read_dataset(stored))
    assert found.train.kept == dataset_reader.read_dataset(stored).train.kept
    assert len(list(disk.folder.iterdir())) == (4 if keeps else 0)
    test = dataset_reader.read_test_split(stored, disk)
    assert np.array_equal(test.images, found.test.images)


def test_written_mapped_dataset_has_same_files(stored, disk, tmp_path):
    dataset_writer.write_dataset(dataset_reader.read_dataset(stored, disk), tmp_path / "again")
    for path in stored.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_kept_map_is_used_again(stored, disk):
    workspace = replace(disk, keeps_maps=True)
    dataset_reader.read_dataset(stored, workspace)
    before = {path: path.stat().st_ino for path in disk.folder.iterdir()}
    dataset_reader.read_dataset(stored, workspace)
    assert {path: path.stat().st_ino for path in disk.folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["byte", "short", "record", "no record", "missing"])
def test_damaged_map_is_written_again(stored, disk, damage):
    workspace = replace(disk, keeps_maps=True)
    dataset_reader.read_dataset(stored, workspace)
    for path in sorted(disk.folder.glob("*.pixels")):
        record = path.with_suffix(".json")
        payload = path.read_bytes()
        if damage == "byte":
            path.write_bytes(bytes([payload[0] ^ 1]) + payload[1:])
        elif damage == "short":
            path.write_bytes(payload[:-1])
        elif damage == "missing":
            path.unlink()
        elif damage == "record":
            record.write_text("{}", encoding="utf-8")
        else:
            record.unlink()
    assert equal(
        dataset_reader.read_dataset(stored, workspace), dataset_reader.read_dataset(stored)
    )


def test_changed_parquet_is_refused(stored, disk):
    workspace = replace(disk, keeps_maps=True)
    dataset_reader.read_dataset(stored, workspace)
    path = stored / "train.parquet"
    payload = bytearray(path.read_bytes())
    payload[100] ^= 1
    path.write_bytes(payload)
    with pytest.raises(DataError, match="SHA-256"):
        dataset_reader.read_dataset(stored, workspace)


def test_map_truncated_in_use_is_refused(stored, disk):
    images = dataset_reader.read_dataset(stored, replace(disk, keeps_maps=True)).train.images
    first = images[0]
    (path,) = (each for each in disk.folder.glob("*.pixels") if str(each) == images.filename)
    os.truncate(path, 100)
    with pytest.raises(StoreError, match=r"pixels: truncated to 100 of \d+ bytes .*resume the run"):
        images.gather(np.array([0], np.int32))
    with pytest.raises(StoreError, match="truncated"):
        images[3:]
    with pytest.raises(StoreError, match="truncated"):
        first[0]
    del images, first
    assert equal(
        dataset_reader.read_dataset(stored, replace(disk, keeps_maps=True)),
        dataset_reader.read_dataset(stored),
    )


@pytest.mark.parametrize("limit", [0, 10**9])
def test_parts_are_joined_the_same(tmp_path, limit):
    source = tmp_path / "source"
    parts = []
    for day in range(3):
        arrays = tiny(seed=day)
        part = Dataset(
            "part",
            Split(arrays.train_images, arrays.train_labels.astype(np.int16)),
            Split(arrays.test_images, arrays.test_labels.astype(np.int16)),
            ("a", "b", "c", "d"),
            f"day {day}",
        )
        parts.append(f"days/2026-01-0{day + 1}/{part.digest}")
        dataset_writer.write_part(part, source / parts[-1])
    dataset_writer.write_parts(source / "whole", name="tiny", source="made up", parts=parts)
    found = dataset_reader.read_dataset(source / "whole", Workspace(tmp_path / "pixels", limit))
    assert is_mapped(found.train.images) == (limit == 0)
    assert equal(found, dataset_reader.read_dataset(source / "whole"))


def test_full_disk_is_one_line(disk, monkeypatch):
    monkeypatch.setattr(pixels.tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "w"))
    with pytest.raises(StoreError, match="No space left on device; free some space") as caught:
        mapped(images(), disk)
    assert "\n" not in str(caught.value)


def test_full_disk_leaves_no_part_of_a_map(stored, disk, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pixels.os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device; free some space"):
            dataset_reader.read_dataset(stored, replace(disk, keeps_maps=True))
    assert list(disk.folder.iterdir()) == []
    assert equal(
        dataset_reader.read_dataset(stored, replace(disk, keeps_maps=True)),
        dataset_reader.read_dataset(stored),
    )


def test_lost_store_is_not_created_again(tmp_path):
    with pytest.raises(StoreError, match="bring the store back"):
        mapped(images(), Workspace(tmp_path / "gone" / "pixels", limit=0))
    assert not (tmp_path / "gone").exists()


def test_memory_of_the_environment(monkeypatch):
    monkeypatch.setenv("NNBUILD_MEMORY", "1000")
    assert available_memory() == 1000
    assert Workspace(Path("unused")).holds(125)
    assert not Workspace(Path("unused")).holds(126)
    assert Workspace().holds(10**15)
    monkeypatch.setenv("NNBUILD_MEMORY", "2 GB")
    with pytest.raises(ConfigError, match="'2 GB', expected a whole number of bytes"):
        available_memory()
    monkeypatch.delenv("NNBUILD_MEMORY")
    assert available_memory() > 1000
