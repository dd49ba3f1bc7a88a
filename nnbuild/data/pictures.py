"""Decoding one picture of a file format: what is common to folders of images and to PNG bytes in Parquet."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnbuild.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"})
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")  # the fewer decoders, the fewer surprises
_MOST_PIXELS = 1 << 24  # 4096 x 4096, far beyond what these networks take
_OPAQUE = 255


@contextmanager
def strict() -> Iterator[None]:
    """While it lasts, Pillow's warnings are errors, and so end as a `DataError` that names the picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def decode(payload: bytes, where: object) -> NDArray[np.uint8]:
    """The pixels of a picture.

    Black-and-white and grey pictures have one channel, coloured ones and those with a palette three. An alpha
    channel is dropped if it is opaque throughout.

    Args:
        payload: a PNG, JPEG, BMP, PGM, PPM or WebP file.
        where: what an error message should name.

    Returns:
        uint8, shape (height, width, channels), channels 1 or 3.

    Raises:
        DataError: no such file, damaged, too large, with transparency, or of another kind such as CMYK.
    """
    try:
        with Image.open(io.BytesIO(payload), formats=_FORMATS) as picture:
            _require_size(picture, where)
            picture.verify()  # a PNG's checksums, which decoding does not read to the end
        with Image.open(io.BytesIO(payload), formats=_FORMATS) as picture:
            pixels = np.asarray(_plain(picture, where))
    except DataError:
        raise
    except Exception as error:  # what a decoder raises on a damaged file is any of a dozen types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{where}: not a readable picture ({reason}); expected {', '.join(_FORMATS)}"
        ) from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _require_size(picture: Image.Image, where: object) -> None:
    if picture.width * picture.height > _MOST_PIXELS:
        raise DataError(
            f"{where}: {picture.width} x {picture.height} pixels; expected at most {_MOST_PIXELS}"
        )


def _plain(picture: Image.Image, where: object) -> Image.Image:
    """The picture in mode L or RGB."""
    if picture.mode in {"1", "L"} and "transparency" not in picture.info:
        return picture.convert("L")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode not in {"1", "L", "RGB", "P", "PA", "LA", "RGBA"}:
        raise DataError(
            f"{where}: a picture of mode {picture.mode}; expected grey or RGB of 8 bits: convert it"
        )
    full = picture.convert("RGBA")
    if full.getchannel("A").getextrema() != (_OPAQUE, _OPAQUE):
        raise DataError(
            f"{where}: transparent in places; expected an opaque picture: put it on a background"
        )
    return full.convert("L" if picture.mode in {"1", "L", "LA"} else "RGB")
