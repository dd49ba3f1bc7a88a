"""`dataset.json`, which describes a dataset in the store.

It names the files of the dataset with their digests. The description of a dataset that consists of
parts lists these instead: the days of a dated source, each stored once for all datasets that have
it.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from nnbuild.data import archives
from nnbuild.data.labels import MAX_CLASSES
from nnbuild.errors import DataError, one_line
from nnbuild.store.schemas import SCHEMA_VERSION

DESCRIPTION = "dataset.json"
DIGESTS = ".digests"
PART = "images.parquet"
_MAX_JSON = 1 << 20
D = TypeVar("D", bound=BaseModel)
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileDescription(BaseModel):
    """The Parquet file of a split.

    Attributes:
        content: SHA-256 of pixels and labels, see `Split.content_digest`.
        image_digests: SHA-256 of the file with the digests of the images, see
            `Split.image_digests`. Datasets that version 0.1 wrote have neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: PositiveInt
    bytes: PositiveInt
    sha256: Sha256
    content: Sha256 | None = None
    image_digests: Sha256 | None = None


class DatasetDescription(BaseModel):
    """A dataset with a file for each split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str
    name: Annotated[str, Field(pattern="^[a-z0-9.-]+$")]
    digest: Sha256
    height: PositiveInt
    width: PositiveInt
    channels: PositiveInt
    class_names: Annotated[tuple[str, ...], Field(min_length=2, max_length=MAX_CLASSES)]
    source: str
    train: FileDescription
    test: FileDescription
    validation: FileDescription | None = None
    held_out: bool = False

    def splits(self) -> dict[str, FileDescription]:
        """Return the file of each split by its name."""
        files = {"train": self.train, "test": self.test}
        return files if self.validation is None else files | {"validation": self.validation}


Part = Annotated[str, Field(pattern="^days/[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9a-f]{64}$")]
"""Path of a part: the folder of a day, relative to the folder of all datasets of that name. It ends
in the digest of its content, see `Dataset.digest`."""


class PartDescription(BaseModel):
    """The only Parquet file of a part, with the splits one after another.

    Attributes:
        rows: Number of images in each split that the part has, in their order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str
    digest: Sha256
    class_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    source: str
    held_out: bool
    rows: dict[Literal["train", "test", "validation"], NonNegativeInt]
    images: FileDescription


class PartsDescription(BaseModel):
    """A dataset that consists of parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str
    name: Annotated[str, Field(pattern="^[a-z0-9.-]+$")]
    digest: Sha256
    source: str
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


def write_description(folder: Path, description: BaseModel, indent: int | None = 2) -> None:
    """Write dataset.json durably, and flush the folder.

    Args:
        folder: Folder of the dataset or the part.
        description: What to write.
        indent: Spaces that each level is indented by; everything in one line if None.
    """
    text = description.model_dump_json(indent=indent, exclude_none=True) + "\n"
    write_durably(folder / DESCRIPTION, text.encode())
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_durably(path: Path, payload: Any) -> None:
    """Write a file, and flush it to the disk."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def has_parts(folder: Path) -> bool:
    """Return whether a dataset consists of parts."""
    value = _read_json(folder / DESCRIPTION)
    return isinstance(value, dict) and "parts" in value


def read_description(folder: Path, kind: type[D]) -> D:
    """Return the dataset.json of a folder.

    Args:
        folder: Folder of the dataset or the part.
        kind: Class of the description.

    Raises:
        DataError: It is missing or damaged, of another kind, or of another schema version.
    """
    path = folder / DESCRIPTION
    try:
        description = kind.model_validate(_read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = one_line(".".join(map(str, first["loc"])))
        raise DataError(f"{path}: {key}: {first['msg']}; ingest the data again") from error
    version = getattr(description, "schema_version", None)
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {one_line(version)}, expected {SCHEMA_VERSION}; ingest again"
        )
    return description


def _read_json(path: Path) -> Any:
    if archives.require_regular(path) > _MAX_JSON:
        raise DataError(
            f"{path}: larger than {_MAX_JSON} bytes; it is not a description of a dataset"
        )
    with archives.open_regular(path) as file, archives.read_errors_as_data_errors(path):
        text = file.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: invalid JSON; ingest the data again") from error
