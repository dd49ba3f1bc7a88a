"""Decode pictures: the known formats only, checked before a decoder sees them, and upright."""

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nnbuild.data import archives
from nnbuild.errors import DataError

WHITE = 255
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"})
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")  # few decoders, to limit the attack surface
_ORIENTATION = 0x0112  # Exif 2.32, section 4.6.4
_WITH_ORIENTATION = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
)
_OTHERS = (
    (b"GIF8", "a GIF, which needs dataset.image_size or dataset.channels"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK", "a zip"),
    (b"\x1f\x8b", "a gzip"),
    (b"\0\5\x16\7", "an AppleDouble file of macOS"),
    (b"\0\0\1\0", "an icon"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an XML file"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
)
_BRANDS = {b"avif": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIF"}
_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_HEADER = struct.Struct(">16sIIBBBBB4x")  # PNG specification, sections 5.2 and 11.2.2
_CHUNK, _CHUNK_BYTES = struct.Struct(">I4s"), 12
_END = b"\0\0\0\0IEND\xaeB`\x82"
_CHANNELS = {0: 1, 2: 3}  # by colour type
_BITS = 8
_MAX_PLAIN_PIXELS = 1 << 24  # 4096 x 4096

# Warnings of the decoders name no file. They are about metadata, and do not change the pixels.
logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)
# For the whole process: `catch_warnings` would replace the filters of all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def has_ending(name: str, suffixes: frozenset[str] = SUFFIXES) -> bool:
    """Return whether a file name has the suffix of a picture."""
    return "." + name.rpartition(".")[2].lower() in suffixes


def plain_png(payload: bytes) -> NDArray[np.uint8] | None:
    """Return the pixels of a plain PNG: 8 bits, grayscale or RGB, not interlaced, no metadata.

    This is what libraries write for data sets, mostly small. libpng decodes a grayscale one of
    28 x 28 pixels in a third of the time that Pillow takes, most of which it spends in Python.

    Returns:
        uint8, shape (height, width, channels); None for any other file, for which `open_picture`
        has the pixels, and for damaged ones, for which it has the error.
    """
    channels = _plain_channels(payload)
    if channels is None:
        return None
    try:
        pixels = imagecodecs.png_decode(payload)  # it checks the checksums
    except (ValueError, RuntimeError):
        return None
    return pixels.reshape(*pixels.shape[:2], channels)


def _plain_channels(payload: bytes) -> int | None:
    """Return the channels of a plain PNG by its header; None for any other file."""
    size = len(payload)
    if size < _HEADER.size + len(_END) or not payload.endswith(_END):
        return None
    head, width, height, depth, colour, *methods = _HEADER.unpack_from(payload)
    if head != _HEAD or depth != 8 or methods != [0, 0, 0]:
        return None
    if not 0 < width * height <= _MAX_PLAIN_PIXELS:
        return None
    start = _HEADER.size
    while start < size - len(_END):  # only chunks of pixels
        length, kind = _CHUNK.unpack_from(payload, start)
        if kind != b"IDAT":
            return None
        start += length + _CHUNK_BYTES
    return _CHANNELS.get(colour) if start == size - len(_END) else None


@contextmanager
def open_picture(
    payload: bytes, where: object, *, max_pixels: int, formats: tuple[str, ...] = FORMATS
) -> Iterator[Image.Image]:
    """Open a picture, check it, and decode its first frame.

    Args:
        payload: Content of the file.
        where: What an error message should name.
        max_pixels: Largest number of pixels; a larger picture is not decoded.
        formats: Formats that may be decoded, by Pillow's names.

    Yields:
        The picture, decoded, in its own mode and not yet upright.

    Raises:
        DataError: The picture is damaged, too large, or of another format; also in place of any
            error that the block raises, but a `DataError` or a `MemoryError`.
    """
    try:
        if payload.startswith(_HEAD[:8]):
            with Image.open(io.BytesIO(payload), formats=("PNG",)) as picture:
                _require_size(picture, where, max_pixels, len(payload))
                picture.verify()  # the checksums, which decoding does not check completely
        with Image.open(io.BytesIO(payload), formats=formats) as picture:
            _require_size(picture, where, max_pixels, len(payload))
            picture.load()  # also reads what follows the pixels, such as the EXIF of a PNG
            _require_all_rows(payload, where)
            _scale_transparency(picture, payload, where)
            yield picture
    except (DataError, MemoryError):  # the second is not the fault of the picture
        raise
    except Image.DecompressionBombError as error:
        # Pillow's own limits are above those of nnbuild, and checked before the size is known.
        raise DataError(
            f"{where}: more than {Image.MAX_IMAGE_PIXELS} pixels; {_expected(max_pixels)}"
        ) from error
    except Exception as error:  # decoders raise errors of many types on damaged files
        problem = _problem(payload, error, formats)
        raise DataError(f"{where}: not a readable picture {problem}") from error


def upright(picture: Image.Image, decoded: Image.Image) -> Image.Image:
    """Return a picture as its EXIF orientation says.

    Args:
        picture: Picture as `open_picture` opened it, with its metadata.
        decoded: Its pixels, possibly converted.
    """
    transposition = _TRANSPOSITIONS.get(_orientation(picture))
    return decoded if transposition is None else decoded.transpose(transposition)


def _problem(payload: bytes, error: Exception, formats: tuple[str, ...]) -> str:
    """Return why a file is not a readable picture of some formats, and what to do."""
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "an unknown format" if unknown else archives.reason_of(error)
    name = _format_of(payload)
    if name in formats:
        reason = f"a damaged {name}" + f": {reason}" * (not unknown)
    elif unknown or _kind_of(payload):
        return f"({_kind_of(payload) or reason}); expected {', '.join(formats)}"
    return f"({reason}); save it again, or remove it"


def _format_of(payload: bytes) -> str | None:
    """Return the name of a picture's format by its first bytes; None for PPM and others."""
    if payload[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC if payload.startswith(magic)), None)


def _kind_of(payload: bytes) -> str | None:
    """Return what a file is that is not a picture of a known format; None if unknown."""
    if not payload:
        return "an empty file"
    if payload[4:8] == b"ftyp":
        return _BRANDS.get(payload[8:12], "a video or a picture in the ISO base media format")
    return next((kind for magic, kind in _OTHERS if payload.startswith(magic)), None)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or unreadable."""
    if _WITH_ORIENTATION.isdisjoint(picture.info):
        return 1  # Pillow's own search takes a tenth of the decoding time
    with suppress(Exception):  # a damaged tag must not discard the picture
        orientation = picture.getexif().get(_ORIENTATION)
        return orientation if isinstance(orientation, int) else 1
    return 1


def _require_size(picture: Image.Image, where: object, max_pixels: int, file_bytes: int) -> None:
    size = f"{picture.width} x {picture.height} pixels"
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise DataError(f"{where}: {size}; {_expected(max_pixels)}")
    if (expanded := pixels * len(picture.getbands())) > archives.allowance(file_bytes):
        raise DataError(
            f"{where}: {size}, {expanded} bytes in a file of {file_bytes}; refused as a "
            "decompression bomb: make it smaller, or remove it"
        )


def _require_all_rows(payload: bytes, where: object) -> None:
    """Refuse a plain PNG, which libpng could not decode: Pillow makes the rows it lacks black."""
    if _plain_channels(payload) is not None:
        raise DataError(
            f"{where}: not a readable picture (a damaged PNG: rows are missing); save it again, or "
            "remove it"
        )


def _scale_transparency(picture: Image.Image, payload: bytes, where: object) -> None:
    """Scale the transparent colour of a PNG to the depth of its pixels; modifies `picture`.

    Pillow expands pixels of 2 and 4 bits to 8, and reduces colours of 16 bits, but not the
    transparent colour, which then is the colour of no pixel.
    """
    colour = picture.info.get("transparency")
    if colour is None or not payload.startswith(_HEAD[:8]):
        return
    *_, depth, kind, _, _, _ = _HEADER.unpack_from(payload)
    if kind not in _CHANNELS:  # a palette has an alpha for each colour
        return
    if depth > _BITS:
        raise DataError(
            f"{where}: a transparent colour of {depth} bits; expected an alpha channel: save it "
            "with one, or without transparency"
        )
    if isinstance(colour, int) and 1 < depth < _BITS:
        picture.info["transparency"] = colour * WHITE // ((1 << depth) - 1)


def _expected(max_pixels: int) -> str:
    return f"expected at most {max_pixels}: make it smaller, or remove it"
