"""Scale the pixels of an array or a file to 0 to 255, by type, and for floats by value.

Integers are used as they are. Floats are 0 to 1 or 0 to 255, which is inferred from the content of
the whole array or file: a single odd row must not change how the others are read. If the content is
ambiguous, an error asks for `pixel_max`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.data.pixels import chunks, is_mapped, mapped_by
from nnbuild.errors import DataError

WHITE = 255
SIXTEEN_BITS = 65535
_DIM = 16.0  # a dataset of 0 to 255 is never this dark; scikit-learn's digits are 0 to 16
_NEARLY_ALL = 0.95
_TOLERANCE = 0.5 / WHITE  # rounding errors of float32 around a white of 1
_BATCH_BYTES = 4 << 20  # converted at a time; as float64 they may take eight times as much


@dataclass(frozen=True)
class Evidence:
    """Counts of float images by their brightest pixel; counts of batches can be added.

    Only images whose values are all finite and from 0 to 255 count.

    Attributes:
        unit: Number of images with a brightest pixel of up to 1, but above 0.
        dim: Number of images with a brightest pixel above 1, up to 16.
        bright: Number of images with a brightest pixel above 16.
    """

    unit: int = 0
    dim: int = 0
    bright: int = 0

    def __add__(self, other: "Evidence") -> "Evidence":
        """Return the sums of the counts."""
        return Evidence(self.unit + other.unit, self.dim + other.dim, self.bright + other.bright)

    def white(self, where: object) -> float:
        """Return the pixel value of white, 1 or 255.

        Args:
            where: Path or address for error messages.

        Raises:
            DataError: The counts are ambiguous.
        """
        total = self.unit + self.dim + self.bright
        if self.unit >= _NEARLY_ALL * total and total:
            return 1.0
        if self.unit <= (1 - _NEARLY_ALL) * total and 2 * self.bright >= total:
            return float(WHITE)
        raise DataError(
            f"{where}: ambiguous range of float pixels: {self.unit} images up to 1, {self.dim} up "
            f"to {_DIM:g}, {self.bright} above; expected all from 0 to 1 or all from 0 to 255: "
            "convert them, or set pixel_max to the value of white"
        )


def evidence_of(images: NDArray[Any]) -> Evidence:
    """Count float images by their brightest pixel.

    Args:
        images: Floats, shape (n, …).
    """
    if not images.size:
        return Evidence()
    rows = images.reshape(len(images), -1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    high = high[(low >= 0) & (high <= WHITE) & (high > 0)]  # a NaN fails this too
    unit = int((high <= 1 + _TOLERANCE).sum())
    bright = int((high > _DIM).sum())
    return Evidence(unit, len(high) - unit - bright, bright)


def white_of(images: NDArray[Any], where: object, pixel_max: float | None = None) -> float:
    """Return the pixel value of white in an array.

    Args:
        images: Integers or floats, shape (n, …).
        where: Path or address for error messages.
        pixel_max: The value, if known.

    Raises:
        DataError: The range of float images is ambiguous, or an image contains NaN.
    """
    if images.dtype.kind != "f":
        return float(WHITE) if pixel_max is None else pixel_max
    batches = _without_nan(images, where, pixel_max)
    if pixel_max is None:
        return _white_of_batches(map(evidence_of, batches), where)
    for _ in batches:  # the scale is known: only NaN is looked for
        pass
    return pixel_max


def _white_of_batches(batches: Iterable[Evidence], where: object) -> float:
    total = sum(batches, Evidence())
    return total.white(where) if total != Evidence() else float(WHITE)


def white_of_floats(batches: Iterable[NDArray[Any]], where: object) -> float:
    """Return the pixel value of white in a file of float images.

    Args:
        batches: Images of the whole file, a batch at a time.
        where: Path or address for error messages.

    Raises:
        DataError: The range of the images is ambiguous.
    """
    return _white_of_batches((evidence_of(batch) for batch in batches), where)


def description(images: NDArray[Any], white: float) -> str:
    """Describe the type and scale of images for the manifest, as `float32 from 0 to 1`."""
    return f"{images.dtype} from 0 to {white:g}"


def to_uint8(images: NDArray[Any], white: float, where: object) -> NDArray[np.uint8]:
    """Scale pixels to 0 to 255, rounded.

    Args:
        images: Integers or floats, shape (n, …).
        white: Pixel value of white, which becomes 255.
        where: Path or address for error messages.

    Raises:
        DataError: Values are not numbers, or are outside 0 to `white`.
    """
    if images.dtype.kind not in "iuf":
        raise DataError(f"{where}: images of type {images.dtype}; expected integers or floats")
    if images.dtype == np.uint8 and white == WHITE and images.flags.c_contiguous:
        return images

    def scaled(batch: NDArray[Any]) -> NDArray[np.uint8]:
        return _scaled(batch, white, where).astype(np.uint8, copy=False)

    if is_mapped(images):
        return mapped_by(images, scaled, _BATCH_BYTES)
    pixels = np.empty(images.shape, np.uint8)
    for rows in chunks(images, _BATCH_BYTES):
        pixels[rows] = scaled(images[rows])
    return pixels


def _without_nan(
    images: NDArray[Any], where: object, pixel_max: float | None
) -> Iterator[NDArray[Any]]:
    """Yield float images, a batch at a time.

    Raises:
        DataError: An image contains NaN.
    """
    for rows in chunks(images, _BATCH_BYTES):
        batch = np.asarray(images[rows])
        if batch.size and np.isnan(batch.min()):
            first = rows.start + int(np.isnan(batch.reshape(len(batch), -1)).any(axis=1).argmax())
            raise DataError(
                f"{where}: image {first} (counted from 0) contains NaN; "
                f"{_expected(batch, pixel_max or WHITE)}; correct the image, or remove it"
            )
        yield batch


def _scaled(batch: NDArray[Any], white: float, where: object) -> NDArray[Any]:
    if not batch.size:
        return batch
    low, high = batch.min(), batch.max()
    if not (low >= 0 and float(high) * WHITE / white < WHITE + 0.5):  # a NaN fails this too
        measured = "pixels are NaN" if np.isnan(low) else f"pixels from {low} to {high}"
        raise DataError(f"{where}: {measured}; {_expected(batch, white)}")
    if batch.dtype.kind != "f" and white == WHITE:
        return batch
    return np.rint(batch.astype(np.float64) * (WHITE / white))


def _expected(batch: NDArray[Any], white: float) -> str:
    if white not in {1, WHITE}:
        return f"expected [0, {white:g}] by pixel_max"
    text = "expected [0, 255], or [0, 1] in floats"
    if batch.min() < 0:
        return f"{text}: undo any normalisation, such as one to [-1, 1]"
    if batch.dtype.kind in "iu" and batch.max() <= SIXTEEN_BITS:
        return f"{text}: for 16 bits, set pixel_max to {SIXTEEN_BITS}"
    return text
