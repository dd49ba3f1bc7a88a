"""Preprocessing: the rules for pictures of all kinds, and equal pixels on every path."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from nnbuild.data import decoding, preprocessing
from nnbuild.data.preprocessing import PictureReader, Preprocessing, decode, fit_images
from nnbuild.errors import DataError

RNG = np.random.default_rng(0)
SQUARE = Preprocessing(image_size=(12, 16), channels=3, background="#102030")


def noise(height=9, width=7, channels=3):
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


def picture_of(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def encoded(picture, kind="PNG", **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, data, *, depth=8, colour=0, methods=(0, 0, 0), transparent=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, *methods)
    key = chunk(b"tRNS", transparent) if transparent else b""
    body = chunk(b"IHDR", header) + key + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def by_pillow(payload):
    with Image.open(io.BytesIO(payload)) as picture:
        pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (3, 50), (64, 5)])
def test_plain_png_equals_pillow(size, channels):
    flat = np.zeros((*size, channels), np.uint8)
    ramp = np.broadcast_to(np.arange(size[1], dtype=np.uint8)[None, :, None], flat.shape)
    for pixels in (noise(*size, channels), flat, ramp):
        payload = encoded(picture_of(np.ascontiguousarray(pixels)))
        found = decoding.plain_png(payload)
        np.testing.assert_array_equal(found, pixels)
        np.testing.assert_array_equal(found, by_pillow(payload))


@pytest.mark.parametrize("colour", [0, 2])
def test_plain_png_is_independent_of_the_last_one(colour):
    channels = 3 if colour else 1
    first = noise(8, 8, channels)
    kept = decoding.plain_png(encoded(picture_of(first)))
    short = png_of(8, 8, zlib.compress(bytes(4 * (8 * channels + 1))), colour=colour)
    assert decoding.plain_png(short) is None  # not the rows of the first one
    with pytest.raises(DataError, match="rows are missing"):
        decode(short, "a")
    np.testing.assert_array_equal(kept, first)


def test_damaged_plain_png_is_refused_or_equal():
    data = zlib.compress(b"".join(b"\1" + row.tobytes() for row in noise(8, 8, 1)[..., 0]))
    changed = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        payload = png_of(8, 8, bytes(damaged))  # with a valid checksum
        found = decoding.plain_png(payload)
        if found is not None:
            np.testing.assert_array_equal(found, by_pillow(payload))
            changed += 1
    assert changed < len(data)


@pytest.mark.parametrize(
    "payload",
    [
        png_of(8, 8, zlib.compress(b"")),
        png_of(0, 8, zlib.compress(b"")),
        png_of(65_000, 65_000, zlib.compress(b"")),
        png_of(8, 8, zlib.compress(bytes(72)), depth=16),
        png_of(8, 8, zlib.compress(bytes(72)), colour=6),
        png_of(8, 8, zlib.compress(bytes(72)), methods=(0, 0, 1)),
        png_of(8, 8, zlib.compress(bytes(72)))[:-12],
        png_of(8, 8, zlib.compress(bytes(72)))[:-17] + bytes(17),
        b"\x89PNG\r\n\x1a\n",
        b"",
    ],
)
def test_other_png_is_not_plain(payload):
    assert decoding.plain_png(payload) is None


KINDS = {
    "PNG": {},
    "JPEG": {"quality": 95},
    "BMP": {},
    "PPM": {},
    "WEBP": {"lossless": True},
    "GIF": {},
}


@pytest.mark.parametrize("settings", [None, SQUARE])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_picture_is_refused_on_one_line(kind, settings):
    good = encoded(picture_of(noise(40, 40)), kind, **KINDS[kind])
    huge = encoded(Image.new("L", (1, 1)), kind)
    sides = {
        "PNG": png_of(65_000, 65_000, zlib.compress(bytes(1000))),
        "JPEG": huge.replace(b"\0\x01\0\x01\x01\x01", b"\xfd\xe8\xfd\xe8\x01\x01"),
        "BMP": huge[:18] + struct.pack("<ii", 65_000, 65_000) + huge[26:],
        "PPM": b"P5 65000 65000 255\n0",
        "WEBP": huge[:12] + b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xe7\xfd\0" * 2,
        "GIF": huge[:6] + b"\xe8\xfd\xe8\xfd" + huge[10:],
    }
    for damaged in (good[: len(good) // 2], good[:9], good[:4] + b"\0" * 40, sides[kind]):
        with pytest.raises(DataError, match=r"^a: [^\n]*$"):
            decode(damaged, "a", settings)


@pytest.mark.parametrize("settings", [None, SQUARE])
@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"II*\0" + bytes(60), "a TIFF"),
        (b"%PDF-1.7 ", "a PDF"),
        (b"PK\3\4", "a zip"),
        (b"\0\0\0\x20ftypavif" + bytes(60), "an AVIF"),
        (b"", "an empty file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "an unknown format"),
        (b"<svg xmlns=''/>", "an SVG"),
    ],
)
def test_other_format_never_reaches_a_decoder(payload, kind, settings):
    with pytest.raises(DataError, match=rf"^a: not a readable picture \({kind}\)"):
        decode(payload, "a", settings)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_picture_is_called_damaged(kind):
    good = encoded(picture_of(noise(40, 40)), kind, **KINDS[kind])
    for size in (16, len(good) // 2, len(good) - 9):
        with pytest.raises(DataError) as caught:
            decode(good[:size], "a", SQUARE)
        assert f"a damaged {kind}" in str(caught.value) or kind == "PPM"
        assert str(caught.value).endswith("; save it again, or remove it")


def test_gif_without_settings_names_them():
    payload = encoded(picture_of(noise(40, 40)), "GIF")
    for content in (payload, payload[:300]):
        with pytest.raises(DataError, match=r"a GIF, which needs dataset\.image_size or"):
            decode(content, "a", None)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_mislabelled_picture_is_read_by_its_content(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture_of(noise(12, 16)), kind))
    assert preprocessing.read(path, SQUARE).shape == (12, 16, 3)


def test_bomb_is_refused_with_a_size():
    side = 8000
    payload = png_of(side, side, zlib.compress(bytes(side * (3 * side + 1)), 9), colour=2)
    assert len(payload) < 200_000
    with pytest.raises(DataError, match=r"a: 8000 x 8000 pixels, 192000000 bytes in .* smaller"):
        decode(payload, "a", SQUARE)


@pytest.mark.parametrize("settings", [None, SQUARE])
@pytest.mark.parametrize("side", [10_000, 65_535])  # above Pillow's two limits
def test_huge_picture_is_refused_before_it_is_read(side, settings):
    payload = png_of(side, side, zlib.compress(bytes(1000)))
    with pytest.raises(DataError, match=r"^a: .* pixels; expected at most \d+:"):
        decode(payload, "a", settings)


def test_warnings_of_pillow_are_not_printed():
    program = (
        "import warnings; from nnbuild.data import decoding; from PIL import Image\n"
        "Image._decompression_bomb_check((10_000, 10_000)); warnings.warn('ours')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert "ours" in ended.stderr
    assert "pixels" not in ended.stderr


def test_line_of_65000_pixels_is_resized():
    payload = png_of(65_000, 1, zlib.compress(bytes(65_001)))
    for mode in ("pad", "crop", "stretch"):
        assert decode(payload, "a", SQUARE.model_copy(update={"resize": mode})).shape == (12, 16, 3)


def test_alpha_is_blended_with_the_background():
    settings = Preprocessing(background="#ff0000")
    half = Image.new("RGBA", (2, 1), (0, 0, 255, 0))
    half.putpixel((1, 0), (0, 0, 255, 255))
    np.testing.assert_array_equal(
        decode(encoded(half), "a", settings), [[[255, 0, 0], [0, 0, 255]]]
    )
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    found = decode(encoded(palette, transparency=0), "a", settings)
    np.testing.assert_array_equal(found, [[[255, 0, 0], [0, 255, 0]]])
    grey = decode(encoded(Image.new("LA", (1, 1), (7, 0))), "a", settings)
    assert grey.shape == (1, 1, 1)
    assert grey.item() == 76  # the luma of pure red


def test_background_keeps_its_colour_behind_gray():
    settings = Preprocessing(channels=3, background="#ff0000")
    for mode in ("LA", "RGBA"):
        picture = Image.new("RGBA", (8, 8), (7, 7, 7, 0)).convert(mode)
        found = decode(encoded(picture), "a", settings)
        np.testing.assert_array_equal(found, np.broadcast_to([255, 0, 0], (8, 8, 3)))


@pytest.mark.parametrize(("depth", "key"), [(1, 1), (2, 1), (2, 3), (4, 1), (4, 14), (8, 7)])
def test_transparent_gray_is_found_at_every_depth(depth, key):
    """Four pixels, of which the first two have the transparent colour."""
    other = 0 if key else 1
    bits = "".join(f"{value:0{depth}b}" for value in (key, key, other, other))
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    payload = png_of(4, 1, zlib.compress(b"\0" + row), depth=depth, transparent=bytes([0, key]))
    found = decode(payload, "a", Preprocessing(channels=3, background="#ff0000"))
    gray = other * 255 // ((1 << depth) - 1)
    np.testing.assert_array_equal(found, [[[255, 0, 0]] * 2 + [[gray] * 3] * 2])
    with pytest.raises(DataError, match="partly transparent"):
        decode(payload, "a")


@pytest.mark.parametrize("settings", [None, SQUARE])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_sixteen_bits_is_refused(channels, settings):
    values = struct.pack(f">{4 * channels}H", *range(1000, 1000 + 4 * channels))
    payload = png_of(
        *(4, 1, zlib.compress(b"\0" + values)),
        depth=16,
        colour=0 if channels == 1 else 2,
        transparent=values[: 2 * channels],
    )
    with pytest.raises(DataError, match=r"^a: [^\n]+$"):
        decode(payload, "a", settings)


@pytest.mark.parametrize("settings", [None, SQUARE])
@pytest.mark.parametrize("rows", [0, 1, 5, 8])
def test_png_without_its_last_rows_is_refused(settings, rows):
    """The data end where a row does, and all checksums are right."""
    whole = png_of(7, 9, zlib.compress(bytes(9 * 8)))
    assert decode(whole, "a", settings) is not None
    with pytest.raises(DataError, match=r"^a: not a readable picture \(a damaged PNG"):
        decode(png_of(7, 9, zlib.compress(bytes(rows * 8))), "a", settings)


def test_gray_scan_of_35_million_pixels_is_read():
    payload = encoded(Image.new("L", (4960, 7016)))
    assert len(payload) < 100_000
    assert decode(payload, "a", SQUARE).shape == (12, 16, 3)


def test_transparency_without_background_is_refused():
    payload = encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 100)))
    with pytest.raises(DataError, match=r"set dataset\.background"):
        decode(payload, "a")


def test_cmyk_becomes_rgb():
    payload = encoded(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "JPEG", quality=100)
    found = decode(payload, "a", Preprocessing(channels=3)).astype(int)
    assert np.abs(found - [0, 255, 255]).max() <= 3


def test_sixteen_bits_keep_the_upper_eight():
    values = RNG.integers(0, 1 << 16, (5, 4), np.uint16)
    for kind in ("PNG", "PPM"):
        found = decode(encoded(Image.fromarray(values), kind), "a", Preprocessing(channels=1))
        np.testing.assert_array_equal(found[..., 0], values >> 8)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_is_its_first_frame(kind):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("#c00000", "#00c000", "#0000c0")]
    options = {"lossless": True} if kind == "WEBP" else {}
    payload = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    found = decode(payload, "a", Preprocessing(channels=3))
    np.testing.assert_array_equal(found, np.broadcast_to([0xC0, 0, 0], (6, 6, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_before_resizing(orientation):
    upright = np.zeros((20, 10, 3), np.uint8)
    upright[:5] = 255
    tag = Image.Exif()
    tag[0x0112] = orientation
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    lying = Image.fromarray(upright)
    if orientation in back:
        lying = lying.transpose(Image.Transpose(back[orientation]))
    payload = encoded(lying, exif=tag)
    settings = Preprocessing(image_size=(8, 4), channels=1)
    found = decode(payload, "a", settings)[..., 0]
    np.testing.assert_array_equal(
        found, decode(encoded(Image.fromarray(upright)), "a", settings)[..., 0]
    )
    assert found[0].min() == 255
    assert found[-1].max() == 0


@pytest.mark.parametrize(
    ("channels", "source"), [(1, 1), (1, 3), (3, 1), (3, 3), (None, 1), (None, 3)]
)
def test_channels_are_converted(channels, source):
    pixels = noise(4, 4, source)
    found = decode(encoded(picture_of(pixels)), "a", Preprocessing(channels=channels))
    if channels in {None, source}:
        np.testing.assert_array_equal(found, pixels)
    elif channels == 3:
        np.testing.assert_array_equal(found, np.repeat(pixels, 3, axis=2))
    else:
        luma = pixels.astype(float) @ [0.299, 0.587, 0.114]
        assert np.abs(found[..., 0] - luma).max() <= 1


def test_pad_keeps_the_proportions():
    settings = Preprocessing(image_size=(10, 10), background="#102030")
    found = decode(encoded(Image.new("RGB", (40, 20), "#ffffff")), "a", settings)
    inside = (found == 255).all(axis=2)
    assert inside.any(axis=1).sum() == 5
    assert inside.any(axis=0).sum() == 10
    np.testing.assert_array_equal(found[0, 0], [0x10, 0x20, 0x30])


def test_crop_cuts_the_centre():
    wide = np.zeros((10, 30, 1), np.uint8)
    wide[:, 10:20] = 255
    settings = Preprocessing(image_size=(10, 10), resize="crop")
    assert decode(encoded(picture_of(wide)), "a", settings).min() == 255


def test_stretch_uses_the_whole_picture():
    wide = np.zeros((10, 30, 1), np.uint8)
    wide[:, 15:] = 255
    found = decode(
        encoded(picture_of(wide)), "a", Preprocessing(image_size=(10, 10), resize="stretch")
    )
    assert found[:, 0].max() == 0
    assert found[:, -1].min() == 255


@pytest.mark.parametrize("resize", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_array_and_picture_give_equal_images(resize, channels):
    settings = Preprocessing(image_size=(6, 11), resize=resize, channels=channels)
    for source in (1, 3):
        pixels = noise(13, 8, source)
        found = fit_images(pixels[np.newaxis], settings)
        expected = decode(encoded(picture_of(pixels)), "a", settings)
        np.testing.assert_array_equal(found, expected[np.newaxis])
        np.testing.assert_array_equal(fit_images(found, settings), found)


def test_images_of_the_size_are_not_copied():
    images = noise(12, 16)[np.newaxis]
    assert fit_images(images, SQUARE) is images
    assert fit_images(images, None) is images


def test_settings_survive_json():
    assert Preprocessing.model_validate_json(SQUARE.model_dump_json()) == SQUARE


def test_reader_skips_up_to_the_limit(tmp_path):
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(encoded(picture_of(noise(5, 5))) if number != 3 else b"broken")
    with pytest.raises(DataError, match=r"3\.png: not a readable picture"):
        PictureReader().read_files(files)
    reader = PictureReader(max_errors=0.1)
    images, rows = reader.read_files(files)
    assert len(images) == 9
    assert 3 not in rows
    reader.require_few_errors(tmp_path)
    assert reader.errors == [str(reader.errors[0])]
    strict = PictureReader(max_errors=0.05)
    strict.read_files(files)
    with pytest.raises(DataError, match=r"1 of 10 pictures are unreadable, more than .*0\.05"):
        strict.require_few_errors(tmp_path)
