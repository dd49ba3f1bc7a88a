"""Options for reading files whose content cannot be inferred."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnbuild.data.pixels import IN_MEMORY, Workspace
from nnbuild.data.preprocessing import PictureReader, Preprocessing


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading files.

    Attributes:
        image_column: Parquet column of the images; None to look for the usual names.
        label_column: Parquet column of the labels; None to look for the usual names.
        keys: Names of the arrays of an .npz by role: `x_train`, `y_train`, `x_validation`,
            `y_validation`, `x_test`, `y_test`; other roles are looked up under the usual names.
        pixel_max: Pixel value of white; None to infer it from type and content.
        skip_other_files: Whether to skip files that are not pictures in a folder of pictures.
        hold_out: Whether to hold out a test split if the source has none; otherwise all of its
            images are in both splits.
        part: Whether the files are a part of a dataset, which may lack classes and splits.
        preprocessing: Settings by which pictures become images of one shape; None to require
            that they have one.
        max_errors: Largest fraction of unreadable pictures to skip; None to refuse the first.
        keep: Columns that describe the images, to keep with them.
        metadata: Table with these columns for a folder of pictures; None for other sources.
        workspace: Where the pixels are held while they are read.
    """

    image_column: str | None = None
    label_column: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    pixel_max: float | None = None
    skip_other_files: bool = False
    hold_out: bool = True
    part: bool = False
    preprocessing: Preprocessing | None = None
    max_errors: float | None = None
    keep: tuple[str, ...] = ()
    metadata: Path | None = None
    workspace: Workspace = IN_MEMORY

    def picture_reader(self) -> PictureReader:
        """Return a reader of the pictures of one dataset."""
        return PictureReader(
            self.preprocessing, max_errors=self.max_errors, workspace=self.workspace
        )


DEFAULT = ReadOptions()
