"""Loading by name or path: every format of the same data gives the same dataset."""

import os
from pathlib import Path

import numpy as np
import pytest
from data_files import (
    separable,
    tiny,
    write_every_form,
    write_idx,
    write_npz,
    write_parquet,
    write_pictures,
)

from nnbuild.data import dataset_writer, sources
from nnbuild.errors import ConfigError, DataError
from nnbuild.runtime.environment import cache_folder


def load(path, **options):
    return sources.load(
        str(path), **({"data_dir": None, "cache": Path("/nonexistent/cache")} | options)
    )


def message(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("shape", [(6, 6, 1), (5, 7, 1), (4, 6, 3)])
def test_every_format_gives_one_dataset(tmp_path, shape):
    arrays = tiny(shape=shape)
    loaded = {form: load(path) for form, path in write_every_form(tmp_path, arrays).items()}
    in_order = {form: dataset for form, dataset in loaded.items() if form != "pictures"}
    assert len({dataset.digest for dataset in in_order.values()}) == 1
    for dataset in in_order.values():
        assert dataset.image_shape == shape
        assert dataset.class_names == ("0", "1", "2", "3")
        assert dataset.train.images.dtype == np.uint8
        assert dataset.train.labels.dtype == np.int16
        np.testing.assert_array_equal(dataset.train.images, arrays.train_images)
        np.testing.assert_array_equal(dataset.test.labels, arrays.test_labels)
    by_class = np.argsort(arrays.train_labels, kind="stable")  # the order of the folders
    np.testing.assert_array_equal(loaded["pictures"].train.images, arrays.train_images[by_class])
    np.testing.assert_array_equal(loaded["pictures"].train.labels, arrays.train_labels[by_class])


def test_stored_dataset_is_a_source(tmp_path):
    dataset = load(write_npz(tmp_path / "Some Data_1.npz", tiny()))
    dataset_writer.write_dataset(dataset, tmp_path / "stored")
    assert load(tmp_path / "stored").digest == dataset.digest
    assert load(tmp_path / "stored" / "train.parquet").image_shape == dataset.image_shape


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Some Data_1.npz", "some-data-1"),
        ("a.b.npz", "a.b"),
        ("ÄÖ.npz", "dataset"),
        ("..npz", "dataset"),
        ("-x-.npz", "x"),
    ],
)
def test_dataset_name_is_made_from_path(tmp_path, given, name):
    assert load(write_npz(tmp_path / given, tiny())).name == name


def test_relative_folder_has_its_own_name(tmp_path, monkeypatch):
    folder = write_idx(tmp_path / "My.Digits", tiny())
    monkeypatch.chdir(folder)
    assert load("./").name == "my.digits"


def test_unknown_name_suggests_the_nearest():
    for given, expected in (
        ("mnits", "did you mean 'mnist'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load(given)
    with pytest.raises(ConfigError, match="expected one of digits, fashion-mnist, kmnist, mnist"):
        load("zzzzzz")
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load("mnist", fallback="digit")
    with pytest.raises(ConfigError):
        load("")


@pytest.mark.parametrize(
    "given", ["no/such/folder", "nothing.npz", "x" * 5000 + ".npz", "a\0b.npz"]
)
def test_missing_path_is_named(given):
    assert "no such file" in message(given)


def test_what_is_no_dataset_is_refused(tmp_path):
    assert "empty folder" in message(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "expected" in message(tmp_path)
    assert "neither Parquet nor .npz nor table of files" in message(tmp_path / "notes.txt")
    (tmp_path / "void.npz").write_bytes(b"")
    assert ".npz" in message(tmp_path / "void.npz")
    (tmp_path / "void.parquet").write_bytes(b"")
    assert "not a Parquet file" in message(tmp_path / "void.parquet")


def test_devices_and_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    assert "not an ordinary file" in message(tmp_path / "pipe.npz")
    assert "not an ordinary file" in message("/dev/zero")
    folder = write_idx(tmp_path / "idx", tiny())
    (folder / "train-images-idx3-ubyte").unlink()
    os.mkfifo(folder / "train-images-idx3-ubyte")
    assert "not an ordinary file" in message(folder)


def test_missing_idx_file_is_named(tmp_path):
    folder = write_idx(tmp_path / "idx", tiny())
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert "lacks t10k-labels-idx1-ubyte" in message(folder)


def test_misnamed_idx_file_is_refused(tmp_path):
    folder = write_idx(tmp_path / "idx", tiny())
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    content = images.read_bytes(), labels.read_bytes()
    images.write_bytes(content[1])
    labels.write_bytes(content[0])
    assert "images of shape (40,)" in message(folder)


def test_hold_out_is_noted_in_the_source(tmp_path):
    arrays = separable()
    single = load(write_parquet(tmp_path / "all.parquet", arrays.train_images, arrays.train_labels))
    folder = load(write_pictures(tmp_path / "all", arrays.train_images, arrays.train_labels))
    for dataset in (single, folder):
        assert "a sixth of the images" in dataset.source
        assert dataset.held_out
        assert len(dataset.train) + len(dataset.test) == len(arrays.train_images)
    held = [{image.tobytes() for image in dataset.test.images} for dataset in (single, folder)]
    assert held[0] == held[1]


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nnbuild"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative is to be ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "nnbuild"
