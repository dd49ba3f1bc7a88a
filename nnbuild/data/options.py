"""What a user says about data that cannot be guessed from the files."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReadOptions:
    """How files are to be read.

    Attributes:
        image_column: Column of the images in Parquet; the usual names are tried if None.
        label_column: Column of the labels in Parquet; the same.
        keys: Arrays of an .npz by what they hold: `x_train`, `y_train`, `x_validation`,
            `y_validation`, `x_test`, `y_test`; the usual names are tried for the others.
        pixel_max: The value that is white; type and content say it if None.
        skip_other_files: Whether files that are not pictures are left out of a folder of pictures.
    """

    image_column: str | None = None
    label_column: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    pixel_max: float | None = None
    skip_other_files: bool = False


DEFAULT = ReadOptions()
