"""Decode pictures: files of an image folder, and encoded bytes in Parquet."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nnbuild.data import archives
from nnbuild.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"})
NO_PICTURE = f"not a picture; expected a file that ends in {', '.join(sorted(SUFFIXES))}"
WHITE = 255
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")  # few decoders, to limit the attack surface
_MAX_PIXELS = 1 << 24  # 4096 x 4096, far above the size of these networks' images
_OPAQUE = 255
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
_OTHERS = (
    (b"GIF8", "a GIF"),
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


@contextmanager
def strict() -> Iterator[None]:
    """Turn Pillow's warnings into errors while the block runs, so that they name the picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def has_ending(name: str) -> bool:
    """Return whether a file name has the suffix of a picture."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def read(file: Path) -> NDArray[np.uint8]:
    """Return the pixels of a picture; see `decode`.

    Raises:
        DataError: Not an ordinary file, or as for `decode`.
    """
    with archives.open_regular(file) as stream, archives.read_errors_as_data_errors(file):
        payload = stream.read()
    return decode(payload, file)


def decode(payload: bytes, where: object) -> NDArray[np.uint8]:
    """Return the pixels of a picture, rotated by its EXIF orientation.

    Grayscale pictures have one channel, coloured ones and those with a palette three. An opaque
    alpha channel is dropped.

    Args:
        payload: A PNG, JPEG, BMP, PGM, PPM or WebP file.
        where: What an error message should name.

    Returns:
        uint8, shape (height, width, channels), channels 1 or 3.

    Raises:
        DataError: The picture is damaged, too large, partly transparent, or of another mode, such
            as CMYK.
    """
    try:
        with Image.open(io.BytesIO(payload), formats=_FORMATS) as picture:
            _require_size(picture, where)
            picture.verify()  # the checksums of a PNG, which decoding does not check completely
        with Image.open(io.BytesIO(payload), formats=_FORMATS) as picture:
            picture.load()  # also reads what follows the pixels, such as the EXIF of a PNG
            pixels = np.asarray(_upright(_plain(picture, where), _orientation(picture)))
    except DataError:
        raise
    except Exception as error:  # decoders raise errors of many types on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = _kind_of(payload) or (
            "an unknown format" if unknown else archives.reason_of(error)
        )
        raise DataError(
            f"{where}: not a readable picture ({reason}); expected {', '.join(_FORMATS)}"
        ) from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _kind_of(payload: bytes) -> str | None:
    """Return the format of a file that is not a supported picture; None if unknown."""
    if not payload:
        return "an empty file"
    if payload[4:8] == b"ftyp":
        return _BRANDS.get(payload[8:12], "a video or a picture in the ISO base media format")
    return next((kind for magic, kind in _OTHERS if payload.startswith(magic)), None)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or unreadable."""
    if _WITH_ORIENTATION.isdisjoint(picture.info):
        return 1  # as Pillow would, after a search that takes a tenth of the decoding time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = picture.getexif().get(_ORIENTATION, 1)
        except Exception:  # noqa: BLE001  (a damaged tag must not discard the picture)
            return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(orientation)
    return picture if transposition is None else picture.transpose(transposition)


def _require_size(picture: Image.Image, where: object) -> None:
    if picture.width * picture.height > _MAX_PIXELS:
        raise DataError(
            f"{where}: {picture.width} x {picture.height} pixels; expected at most {_MAX_PIXELS}"
        )


def _plain(picture: Image.Image, where: object) -> Image.Image:
    """Convert a picture to mode L or RGB."""
    if picture.mode in {"1", "L"} and "transparency" not in picture.info:
        return picture.convert("L")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode not in {"1", "L", "RGB", "P", "PA", "LA", "RGBA"}:
        raise DataError(
            f"{where}: picture of mode {picture.mode}; expected 8-bit grayscale or RGB: convert it"
        )
    full = picture.convert("RGBA")
    if full.getchannel("A").getextrema() != (_OPAQUE, _OPAQUE):
        raise DataError(
            f"{where}: partly transparent; expected an opaque picture: add a background"
        )
    return full.convert("L" if picture.mode in {"1", "L", "LA"} else "RGB")
