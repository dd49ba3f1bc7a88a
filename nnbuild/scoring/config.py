"""What a scoring job is told."""

from typing import Annotated, Literal

from pydantic import Field

from nnbuild.config.sections import Section, name_or

SCORING_MODEL = name_or(
    ("champion",), "Run id or model file", r"^[0-9]{8}T[0-9]{9}Z-[0-9a-f]{6}$|[/\\.]"
)


class ScoreConfig(Section):
    """Everything that decides what a scoring job writes."""

    input: str = Field(
        min_length=1,
        description="A Parquet file, a folder, a glob or a URL; IDX, .npz, or pictures",
    )
    model: Annotated[str, SCORING_MODEL] = Field(
        "champion", min_length=1, description="champion, the id of a run, or a model file"
    )
    digest: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="sha256 of the model file"
    )
    output: str | None = Field(
        None, min_length=1, description="A new folder for the rows; the store's table if null"
    )
    keep: tuple[str, ...] = Field((), description="Columns of the input that are carried through")
    id_column: str | None = Field(
        None, description="The column that becomes example_id; the row's number if null"
    )
    image_column: str | None = Field(
        None,
        min_length=1,
        description="Parquet column of the images; image, img or images if null",
    )
    label_column: str | None = Field(
        None,
        min_length=1,
        description="Parquet column of the labels; label, labels, fine_label or target if null",
    )
    pixel_max: float | None = Field(
        None,
        gt=0,
        le=2**32,
        description="Pixel value that is white, such as 1, 255 or 65535; type and content say it if null",
    )
    max_brightness_ratio: float = Field(
        10.0,
        gt=1,
        description="Most that the mean brightness may differ from the model's reference, as a factor",
    )
    logits: bool = Field(default=False, description="Write the logits too")
    top_k: int | None = Field(None, ge=1, le=1000, description="Write the k likeliest classes too")
    where: str | None = Field(
        None, description="Write only rows for which this is true: confidence < 0.6"
    )
    calibrated: bool = Field(
        default=False, description="Divide the logits by the run's temperature"
    )
    engine: Literal["auto", "onnx", "keras"] = Field(
        "auto",
        description="What runs the model; auto: ONNX Runtime, or Keras for a run that was not exported",
    )
    batch_size: int = Field(4096, ge=1, le=1_000_000, description="Images per batch")
    threads: int | None = Field(
        None, ge=1, le=1024, description="Of the engine; all processors if null"
    )
    on_error: Literal["stop", "quarantine"] = Field(
        "stop", description="What becomes of rows that cannot be scored"
    )
    drift_psi: float = Field(
        0.2,
        gt=0,
        description="Population stability index that is told of: 0.1 is worth a look, 0.25 a change (Siddiqi 2006)",
    )
    drift_ks: float = Field(
        0.2, gt=0, le=1, description="Kolmogorov-Smirnov distance that is told of"
    )
    shard_rows: int = Field(
        262_144, ge=1, description="Rows of the input per file of the output, about"
    )
