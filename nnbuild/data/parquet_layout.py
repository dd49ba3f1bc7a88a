"""Choose the columns of a Parquet file that hold its images, labels and IDs, and check them."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from nnbuild.data import arrow_images
from nnbuild.data.file_tree import File
from nnbuild.data.preprocessing import PictureReader
from nnbuild.data.streams import Columns
from nnbuild.errors import DataError, suggestion


class Layout(NamedTuple):
    """Columns and reader of a file.

    Attributes:
        image: Name of the image column.
        label: Name of the label column; None if no column can be read as labels.
        reader: Reader of the images.
    """

    image: str
    label: str | None
    reader: arrow_images.Reader


class Layouts:
    """The layouts of the files of an input, whose columns must go together.

    Args:
        address: Address of the input, as the user wrote it.
        columns: Columns to read.
        class_names: Class names of the network; without any, texts are not labels.
        pictures: Reader of encoded pictures.
        first: The first file, and its schema.
    """

    def __init__(
        self,
        address: str,
        columns: Columns,
        class_names: Sequence[str],
        pictures: PictureReader,
        first: tuple[File, pa.Schema],
    ) -> None:
        self._address, self._columns, self._class_names = address, columns, class_names
        self._pictures = pictures
        self._first_file, self._first = first

    def of(self, file: File, schema: pa.Schema) -> Layout:
        """Return the layout of a file.

        Raises:
            DataError: It lacks a column, or has other column types than the first file.
        """
        where = self._address if file is self._first_file else str(file)
        image = arrow_images.image_column(schema.names, self._columns.image, where)
        self._require_columns(file, schema, where)
        reader = arrow_images.reader(
            schema.field(image).type, schema.metadata or {}, where, image, self._pictures
        )
        return Layout(image, self._label(schema, where), reader)

    def names(self, layout: Layout) -> list[str]:
        """Return the names of the columns to read from a file."""
        names = [layout.reader.column, *self._columns.keep, self._columns.example_id, layout.label]
        return list(dict.fromkeys(name for name in names if name))

    def _require_columns(self, file: File, schema: pa.Schema, where: str) -> None:
        """Refuse a file without the columns to copy and of IDs, or with others than the first."""
        keep, example_id = self._columns.keep, self._columns.example_id
        for name in [*keep, *([example_id] if example_id else [])]:
            if name not in schema.names:
                raise DataError(f"{where}: no column {name!r}; {suggestion(name, schema.names)}")
            arrow_images.require_single(schema.names, name, where)
            kind, first = schema.field(name).type, self._first.field(name).type
            if name in keep and kind != first:
                raise self._unlike_first(file, name, kind)
        if example_id:
            self._require_id_type(file, schema.field(example_id).type, where)

    def _require_id_type(self, file: File, kind: pa.DataType, where: str) -> None:
        name = self._columns.example_id
        if not pa.types.is_integer(kind) and not arrow_images.is_text(kind):
            raise DataError(
                f"{where}: column {name!r} is {kind}; expected integers or texts, or no id_column"
            )
        if arrow_images.is_text(kind) != arrow_images.is_text(self._first.field(name).type):
            raise self._unlike_first(file, str(name), kind)

    def _unlike_first(self, file: File, name: str, kind: pa.DataType) -> DataError:
        return DataError(
            f"{file}: column {name!r} is {kind}, in {self._first_file} it is "
            f"{self._first.field(name).type}; score the two files separately"
        )

    def _label(self, schema: pa.Schema, where: str) -> str | None:
        requested = self._columns.label
        try:
            name = arrow_images.label_column(schema.names, requested, where)
        except DataError:
            if requested is not None:
                raise
            return None
        kind = schema.field(name).type
        if pa.types.is_integer(kind) or (arrow_images.is_text(kind) and self._class_names):
            return name
        if requested is not None:
            raise DataError(f"{where}: column {name!r} is {kind}; expected integers or class names")
        return None
