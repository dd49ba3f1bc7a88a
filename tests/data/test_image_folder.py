"""Folders of images by class, and the pictures in them."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from data_files import png, tiny, write_picture_folder, write_pictures
from PIL import Image

from nnbuild.data import image_folder, preprocessing
from nnbuild.errors import DataError

NAMES = ("ant", "bee", "cow", "dog")


def refused(path) -> str:
    with pytest.raises(DataError) as caught:
        image_folder.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def encoded(picture: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_classes_are_the_folder_names(tmp_path):
    arrays = tiny()
    dataset = image_folder.load(write_picture_folder(tmp_path, arrays, NAMES))
    assert dataset.class_names == NAMES
    assert np.bincount(dataset.train.labels).tolist() == [10] * 4
    assert np.bincount(dataset.test.labels).tolist() == [5] * 4


def test_numbers_are_ordered_by_value(tmp_path):
    arrays = tiny(train=24, classes=12)
    dataset = image_folder.load(write_pictures(tmp_path, arrays.train_images, arrays.train_labels))
    assert dataset.class_names == tuple(str(label) for label in range(12))


def test_hold_out_ignores_file_names(tmp_path):
    arrays = tiny(train=60)
    backwards = slice(None, None, -1)
    first = image_folder.load(
        write_pictures(tmp_path / "a", arrays.train_images, arrays.train_labels)
    )
    second = image_folder.load(
        write_pictures(
            tmp_path / "b", arrays.train_images[backwards], arrays.train_labels[backwards]
        )
    )
    held = [{image.tobytes() for image in dataset.test.images} for dataset in (first, second)]
    assert held[0] == held[1]
    assert "a sixth of the images" in first.source


def test_train_folder_alone_is_divided(tmp_path):
    arrays = tiny()
    write_pictures(tmp_path / "train", arrays.train_images, arrays.train_labels)
    dataset = image_folder.load(tmp_path)
    assert len(dataset.train) + len(dataset.test) == 40


def test_hidden_files_are_passed_over(tmp_path):
    write_picture_folder(tmp_path, tiny())
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "0" / ".thumbnail").write_bytes(b"x")
    assert len(image_folder.load(tmp_path).train) == 40


def test_what_is_no_picture_is_named(tmp_path):
    write_picture_folder(tmp_path, tiny())
    extra = tmp_path / "train" / "0" / "notes.txt"
    extra.write_text("hello")
    assert f"{extra}: not a picture" in refused(tmp_path)
    extra.unlink()
    broken = tmp_path / "test" / "2" / "broken.png"
    broken.write_bytes(png(np.zeros((6, 6, 1), np.uint8))[:-30])
    assert f"{broken}: not a readable picture" in refused(tmp_path)


def test_another_size_or_mode_is_named(tmp_path):
    write_picture_folder(tmp_path, tiny())
    odd = tmp_path / "train" / "3" / "odd.png"
    odd.write_bytes(png(np.zeros((6, 7, 1), np.uint8)))
    assert f"{odd}: height, width, channels (6, 7, 1)" in refused(tmp_path)
    odd.write_bytes(png(np.zeros((6, 6, 3), np.uint8)))
    assert f"{odd}: height, width, channels (6, 6, 3)" in refused(tmp_path)


def test_empty_or_unknown_class_is_named(tmp_path):
    write_picture_folder(tmp_path, tiny())
    (tmp_path / "test" / "zebra").mkdir()
    assert "has class 'zebra'" in refused(tmp_path)
    (tmp_path / "train" / "zebra").mkdir()
    assert f"{tmp_path / 'train' / 'zebra'}: an empty folder" in refused(tmp_path)


def test_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("notes")
    assert "no pictures; expected train/<class>/*.png" in refused(tmp_path)
    (tmp_path / "a.png").write_bytes(png(np.zeros((6, 6, 1), np.uint8)))
    assert "1 picture(s), but none in a folder of its class" in refused(tmp_path)
    arrays = tiny()
    write_pictures(tmp_path, arrays.train_images, arrays.train_labels * 0)
    assert "1 class(es)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("LA", 1)]
)
def test_modes_become_grey_or_rgb(mode, channels):
    grey = np.random.default_rng(0).integers(0, 2, (5, 4), np.uint8) * 255
    picture = Image.fromarray(grey).convert("RGB").convert(mode)
    pixels = preprocessing.decode(encoded(picture), "a")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., np.newaxis], channels, axis=2))


@pytest.mark.parametrize("kind", ["BMP", "PPM", "WEBP", "JPEG"])
def test_other_formats_are_read(kind):
    grey = np.full((6, 6), 128, np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = preprocessing.decode(
        encoded(Image.fromarray(grey).convert("RGB"), kind, **options), "a"
    )
    assert pixels.shape == (6, 6, 3)
    assert np.abs(pixels.astype(int) - 128).max() <= 2


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (Image.new("RGBA", (4, 4), (1, 2, 3, 100)), "PNG"),
        (Image.new("LA", (4, 4), (1, 100)), "PNG"),
        (Image.new("CMYK", (4, 4)), "JPEG"),
        (Image.new("I;16", (4, 4)), "PNG"),
        (Image.new("L", (4, 4)), "GIF"),
        (Image.new("L", (4, 4)), "TIFF"),
    ],
)
def test_other_kinds_of_picture_are_refused(picture, kind):
    with pytest.raises(DataError, match=r"^a: .*expected"):
        preprocessing.decode(encoded(picture, kind), "a")


def test_picture_bomb_is_refused_early(tmp_path):
    (tmp_path / "0").mkdir()
    content = png(np.zeros((2048, 2048, 1), np.uint8))
    for number in range(100):
        (tmp_path / "0" / f"{number}.png").write_bytes(content)
    assert len(content) * 100 < 1 << 20
    tracemalloc.start()
    assert "would expand to 419430400 bytes; refused" in refused(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20  # a few copies of one picture
    tracemalloc.stop()


@pytest.mark.parametrize("side", [5000, 12000, 20000])
def test_a_picture_bomb_is_refused(side):
    payload = bytearray(png(np.zeros((4, 4, 1), np.uint8)))
    payload[16:24] = struct.pack(">II", side, side)
    payload[29:33] = struct.pack(">I", zlib.crc32(payload[12:29]))
    with pytest.raises(DataError, match=r"^a: "):
        preprocessing.decode(bytes(payload), "a")
