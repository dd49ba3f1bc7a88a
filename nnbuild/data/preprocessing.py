"""Turn pictures into the images of a network: one function for training, evaluation and scoring.

The rules, in this order:

1. Only the first frame is used, and it is rotated as its EXIF orientation says.
2. Palettes become RGB and CMYK becomes RGB, both without colour profiles. Of 16 bits the upper
   eight are used.
3. Transparent pixels are blended with the background.
4. Colour becomes grayscale by the luma of ITU-R BT.601 (299 R + 587 G + 114 B) / 1000, or grayscale
   becomes three equal channels.
5. The picture is resized by a bilinear filter whose support grows with the reduction.

Every step is integer arithmetic of Pillow, so the same bytes give the same pixels on every machine
with the same version of Pillow.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from nnbuild.data import archives, decoding
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.pixels import IN_MEMORY, ImageCollector, Workspace, is_mapped, mapped_by
from nnbuild.errors import DataError

METADATA_KEY = "nnbuild.preprocessing"
"""Key of the settings, as JSON, in the metadata of a stored model."""

ONE_SHAPE = (
    "expected one size, all grayscale or all RGB: set dataset.image_size and dataset.channels"
)
SUFFIXES = decoding.SUFFIXES | {".gif"}
_FORMATS = (*decoding.FORMATS, "GIF")
_MAX_PIXELS = 1 << 24  # 4096 x 4096, far above the size of these networks' images
_MAX_PIXELS_TO_RESIZE = 1 << 26  # 8192 x 8192, a photo of 67 megapixels
_MAX_NAMED = 3
_OPAQUE = 255
_GRAY = {"1", "L", "LA"}
_SIXTEEN_BITS = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOUR = {"RGB", "RGBX", "P", "PA", "RGBA", "RGBa", "CMYK"}
_FILTER = Image.Resampling.BILINEAR

ResizeMode = Literal["pad", "crop", "stretch"]
Side = Annotated[int, Field(ge=1, le=4096)]


class Preprocessing(BaseModel):
    """Settings by which pictures become images of one shape; stored with the run and its model.

    Attributes:
        image_size: Height and width in pixels; None to keep the size of the pictures.
        resize: `pad` keeps the whole picture and its proportions, and fills the rest with the
            background; `crop` keeps the proportions and cuts the picture at the centre; `stretch`
            changes the proportions.
        channels: 1 for grayscale, 3 for RGB; None to keep those of the pictures.
        background: Colour of transparent pixels and of padding, as `#rrggbb`.
        rules: Version of this module's rules; a model keeps the one that it was trained with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: tuple[Side, Side] | None = None
    resize: ResizeMode = "pad"
    channels: Literal[1, 3] | None = None
    background: str = Field("#ffffff", pattern="^#[0-9a-fA-F]{6}$")
    rules: Literal[1] = 1


class PictureReader:
    """Reader of the pictures of a dataset, which can skip unreadable ones.

    Args:
        settings: Settings of the run; None if it has none.
        max_errors: Largest fraction of pictures to skip; None to refuse the first unreadable one.
        workspace: Where the images of files are held.

    Attributes:
        settings: Settings of the run.
        errors: Message about each skipped picture.
    """

    def __init__(
        self,
        settings: Preprocessing | None = None,
        *,
        max_errors: float | None = None,
        workspace: Workspace = IN_MEMORY,
    ) -> None:
        self.settings, self._max_errors, self._workspace = settings, max_errors, workspace
        self.errors: list[str] = []
        self._pictures = 0

    @property
    def skips(self) -> bool:
        """Return whether unreadable pictures are skipped."""
        return self._max_errors is not None

    def decode(self, payload: bytes | None, where: object) -> NDArray[np.uint8] | None:
        """Return the image of a picture; None if it is skipped.

        Args:
            payload: Content of the file; None if it is missing.
            where: What an error message should name.

        Raises:
            DataError: The picture is unreadable, and unreadable ones are refused.
        """
        self._pictures += 1
        if payload is None:
            self._skip(DataError(f"{where}: null; expected the content of a picture"))
            return None
        try:
            return decode(payload, where, self.settings)
        except DataError as error:
            self._skip(error)
            return None

    def read(self, file: Path) -> NDArray[np.uint8] | None:
        """Return the image of a file; see `decode`."""
        try:
            payload = archives.read_regular(file)
        except DataError as error:
            self._pictures += 1
            self._skip(error)
            return None
        return self.decode(payload, file)

    def read_files(
        self, files: Sequence[Path], shape: tuple[int, ...] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """Return the images of files of one shape.

        Args:
            files: Paths of at least one picture.
            shape: Height, width and channels that they must have; those of the first one if None.

        Returns:
            Images, shape (n, height, width, channels), and the position of the file of each.

        Raises:
            DataError: A picture is unreadable or of another shape, none is readable, or the images
                need too much memory.
        """
        collector: ImageCollector | None = None
        rows: list[int] = []
        for position, file in enumerate(files):
            if (pixels := self.read(file)) is None:
                continue
            if collector is None:
                shape = pixels.shape if shape is None else shape
                self._require_memory(files, shape)
                collector = ImageCollector(self._workspace, len(files), shape)
            if pixels.shape != shape:
                raise DataError(
                    f"{file}: height, width, channels {pixels.shape}, but {shape} in the first "
                    f"picture; {ONE_SHAPE}"
                )
            collector.append(pixels)
            rows.append(position)
        if collector is None:
            raise DataError(f"{files[0].parent}: no readable picture; {self.errors[0]}")
        return collector.finish(), np.array(rows)

    def _require_memory(self, files: Sequence[Path], shape: tuple[int, ...]) -> None:
        """Refuse a decompression bomb; the size of images that are resized is the user's choice."""
        size = math.prod(shape) * len(files)
        resized = self.settings is not None and self.settings.image_size is not None
        if not resized and size > archives.allowance(sum(map(_bytes, files))):
            raise DataError(
                f"{files[0].parent}: {len(files)} pictures would expand to {size} bytes; refused"
            )

    def _skip(self, error: DataError) -> None:
        """Count an unreadable picture, or refuse it."""
        if not self.skips:
            raise error
        self.errors.append(str(error))

    def require_few_errors(self, where: object) -> None:
        """Refuse a dataset with too many unreadable pictures, after all were read.

        Raises:
            DataError: The fraction of skipped pictures is above the limit.
        """
        count, limit = len(self.errors), self._max_errors
        if limit is None or count <= limit * self._pictures:
            return
        shown = "; ".join(self.errors[:_MAX_NAMED]) + "; …" * (count > _MAX_NAMED)
        raise DataError(
            f"{where}: {count} of {self._pictures} pictures are unreadable, more than "
            f"dataset.max_errors {limit:g}: {shown}"
        )


def _bytes(file: Path) -> int:
    """Return the size of a file; 0 if it cannot be read, in which case it may be skipped."""
    try:
        return archives.require_regular(file)
    except DataError:
        return 0


def is_picture(name: str, settings: Preprocessing | None = None) -> bool:
    """Return whether a file name has the suffix of a picture that `decode` supports."""
    return decoding.has_ending(name, decoding.SUFFIXES if settings is None else SUFFIXES)


def expected_suffixes(settings: Preprocessing | None = None) -> str:
    """Return the suffixes that `is_picture` accepts, for messages."""
    suffixes = ", ".join(sorted(decoding.SUFFIXES if settings is None else SUFFIXES))
    note = " (.gif too with dataset.image_size or dataset.channels)" if settings is None else ""
    return suffixes + note


def not_a_picture(settings: Preprocessing | None = None) -> str:
    """Return the reason why a file whose name `is_picture` refuses is not read."""
    return f"not a picture; expected a file that ends in {expected_suffixes(settings)}"


def decode(
    payload: bytes, where: object, settings: Preprocessing | None = None
) -> NDArray[np.uint8]:
    """Return the image of a picture, as training, evaluation and scoring use it.

    Without settings, the picture keeps its size, palettes and opaque alpha channels are resolved,
    and pictures with transparency, CMYK, 16-bit grayscale or in a GIF are refused.

    Args:
        payload: A PNG, JPEG, BMP, PGM, PPM or WebP file; with settings also a GIF.
        where: What an error message should name.
        settings: Settings of the run; None if it has none.

    Returns:
        uint8, shape (height, width, channels), channels 1 or 3.

    Raises:
        DataError: The picture is damaged, too large, or of a kind that is not supported.
    """
    pixels = decoding.plain_png(payload)
    if pixels is not None:
        return pixels if settings is None else _as_image(pixels, settings)
    if settings is None:
        with decoding.open_picture(payload, where, max_pixels=_MAX_PIXELS) as picture:
            pixels = np.asarray(decoding.upright(picture, _plain(picture, where)))
    else:
        with decoding.open_picture(
            payload, where, max_pixels=_MAX_PIXELS_TO_RESIZE, formats=_FORMATS
        ) as picture:
            converted = decoding.upright(picture, _converted(picture, where, settings))
            pixels = np.asarray(_resized(converted, settings))
    return pixels.reshape(*pixels.shape[:2], -1)


def read(file: Path | str, settings: Preprocessing | None = None) -> NDArray[np.uint8]:
    """Return the image of a file; see `decode`.

    Raises:
        DataError: Not an ordinary file, or as for `decode`.
    """
    return decode(archives.read_regular(file), file, settings)


def fit_images(images: NDArray[np.uint8], settings: Preprocessing | None) -> NDArray[np.uint8]:
    """Return images of an array with the size and the channels of the settings.

    Args:
        images: uint8, shape (n, height, width, channels).
        settings: Settings of the run; None to return the images as they are.

    Returns:
        `images` itself if they have that shape already.
    """
    if settings is None or not len(images) or _has_shape(images.shape[1:], settings):
        return images
    if not is_mapped(images):
        return np.stack([_as_image(image, settings) for image in images])
    return mapped_by(images, lambda batch: np.stack([_as_image(each, settings) for each in batch]))


def fit_dataset(dataset: Dataset, settings: Preprocessing | None) -> Dataset:
    """Return a dataset whose images have the size and the channels of the settings.

    Pictures have them since they were decoded; images in arrays have not.
    """

    def fitted(split: Split) -> Split:
        return replace(split, images=fit_images(split.images, settings))

    if settings is None:
        return dataset
    return replace(
        dataset,
        train=fitted(dataset.train),
        test=fitted(dataset.test),
        validation=None if dataset.validation is None else fitted(dataset.validation),
    )


def _has_shape(shape: tuple[int, ...], settings: Preprocessing) -> bool:
    size, channels = settings.image_size or shape[:2], settings.channels or shape[2]
    return shape == (*size, channels)


def _as_image(pixels: NDArray[np.uint8], settings: Preprocessing) -> NDArray[np.uint8]:
    """Return opaque, upright pixels with the size and the channels of the settings."""
    if _has_shape(pixels.shape, settings):
        return pixels
    is_gray = pixels.shape[2] == 1
    picture = Image.fromarray(pixels[..., 0] if is_gray else pixels)
    fitted = np.asarray(_resized(_with_channels(picture, settings, is_gray=is_gray), settings))
    return fitted.reshape(*fitted.shape[:2], -1)


def _plain(picture: Image.Image, where: object) -> Image.Image:
    """Convert a picture to mode L or RGB, and refuse what would need a rule to do so."""
    if picture.mode in {"1", "L"} and "transparency" not in picture.info:
        return picture.convert("L")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode not in {"1", "L", "RGB", "P", "PA", "LA", "RGBA"}:
        raise DataError(
            f"{where}: picture of mode {picture.mode}; expected 8-bit grayscale or RGB: convert "
            "it, or set dataset.channels to 1 or 3"
        )
    full = picture.convert("RGBA")
    if not _is_opaque(full):
        raise DataError(
            f"{where}: partly transparent; expected an opaque picture: add a background, or set "
            "dataset.background to its colour"
        )
    return full.convert("L" if picture.mode in _GRAY else "RGB")


def _is_opaque(picture: Image.Image) -> bool:
    return bool(picture.getchannel("A").getextrema() == (_OPAQUE, _OPAQUE))


def _converted(picture: Image.Image, where: object, settings: Preprocessing) -> Image.Image:
    """Convert a picture to mode L or RGB by the rules."""
    if picture.mode in _SIXTEEN_BITS:
        return _with_channels(_upper_bits(picture, where), settings, is_gray=True)
    if picture.mode not in _GRAY | _COLOUR:
        raise DataError(
            f"{where}: picture of mode {picture.mode}; expected grayscale, RGB or CMYK: convert it"
        )
    is_gray = picture.mode in _GRAY
    if picture.mode in {"RGBA", "RGBa", "LA", "PA"} or "transparency" in picture.info:
        full = picture.convert("RGBA")
        if not _is_opaque(full):
            canvas = Image.new("RGBA", full.size, settings.background)
            full = Image.alpha_composite(canvas, full)
        picture = full.convert("RGB")  # the background may have a colour
    return _with_channels(picture, settings, is_gray=is_gray)


def _upper_bits(picture: Image.Image, where: object) -> Image.Image:
    """Return the upper eight bits of a grayscale picture of 16 bits."""
    values = np.asarray(picture)
    if values.min() < 0 or values.max() >= 1 << 16:
        raise DataError(
            f"{where}: values from {values.min()} to {values.max()}; expected 16 bits: convert it"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


def _with_channels(picture: Image.Image, settings: Preprocessing, *, is_gray: bool) -> Image.Image:
    """Convert an opaque picture to mode L or RGB; one that was gray stays so by default."""
    grayscale = is_gray if settings.channels is None else settings.channels == 1
    return picture.convert("L" if grayscale else "RGB")


def _resized(picture: Image.Image, settings: Preprocessing) -> Image.Image:
    if settings.image_size is None:
        return picture
    height, width = settings.image_size
    if picture.size == (width, height):
        return picture
    if settings.resize == "stretch":
        return picture.resize((width, height), _FILTER)
    if settings.resize == "crop":
        return ImageOps.fit(picture, (width, height), _FILTER)
    return _padded(picture, width, height, settings.background)


def _padded(picture: Image.Image, width: int, height: int, background: str) -> Image.Image:
    """Return a picture with its proportions in the centre of a canvas."""
    # `ImageOps.pad` rounds a side to 0 for pictures such as 65,000 x 1.
    scale = min(width / picture.width, height / picture.height)
    inner = (
        min(width, max(1, round(picture.width * scale))),
        min(height, max(1, round(picture.height * scale))),
    )
    canvas = Image.new(picture.mode, (width, height), ImageColor.getcolor(background, picture.mode))
    place = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(picture.resize(inner, _FILTER), place)
    return canvas
