"""Settings of a scoring job."""

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from nnbuild.config.sections import Section, name_or
from nnbuild.store.ids import is_run_id

SCORING_MODEL = name_or(
    ("champion",),
    "Run ID, champion:DATASET or model file",
    r"^[0-9]{8}T[0-9]{9}Z-[0-9a-f]{6}$|^champion:|[/\\.]",
)
NEWEST = "newest"
"""The word that stands for the newest run of the model's dataset that was not promoted."""


def _newest_or_run_id(text: str) -> str:
    if text != NEWEST and not is_run_id(text):
        raise PydanticCustomError(
            "shadow", "expected newest or a run ID such as 20261123T030000000Z-4f2a1c"
        )
    return text


class ScoreConfig(Section):
    """Settings that decide what a scoring job writes."""

    input: str = Field(
        min_length=1,
        description="File, folder or glob of Parquet or pictures; URL of Parquet; IDX or .npz file",
    )
    model: Annotated[str, SCORING_MODEL] = Field(
        "champion",
        min_length=1,
        description="champion, champion:DATASET, a run ID, or a model file",
    )
    digest: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="SHA-256 of the model file"
    )
    shadow: Annotated[str, AfterValidator(_newest_or_run_id)] | None = Field(
        None,
        description="Run that scores the same rows alongside the model, into the table "
        "shadow_scores: a run ID, or newest for the newest run that was not promoted",
    )
    output: str | None = Field(
        None, min_length=1, description="New folder for the rows; the store's table if null"
    )
    keep: tuple[str, ...] = Field((), description="Columns of the input to copy to the output")
    id_column: str | None = Field(
        None,
        description="Column that identifies the rows: integers become example_id, texts "
        "example_key; the row number if null",
    )
    day: date | None = Field(
        None,
        description="Day of the images, for live accuracy; the day of {date}, or of the job, if "
        "null",
    )
    image_column: str | None = Field(
        None,
        min_length=1,
        description="Parquet column with the images; image, img or images if null",
    )
    label_column: str | None = Field(
        None,
        min_length=1,
        description="Parquet column with the labels; label, labels, fine_label or target if null",
    )
    pixel_max: float | None = Field(
        None,
        gt=0,
        le=2**32,
        description=(
            "Pixel value of white, such as 1, 255 or 65535; inferred from the pixels if null"
        ),
    )
    max_brightness_ratio: float = Field(
        10.0,
        gt=1,
        description=(
            "Largest accepted ratio between the mean brightness and the model's reference"
        ),
    )
    logits: bool = Field(default=False, description="Also write the logits")
    top_k: int | None = Field(
        None, ge=1, le=1000, description="Also write the k most likely classes"
    )
    where: str | None = Field(
        None, description="Filter of the rows to write, such as confidence < 0.6"
    )
    calibrated: bool = Field(
        default=False, description="Divide the logits by the temperature of the run"
    )
    coverage: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "Also write sets of classes that contain the true class with this probability; "
            "0.95, for example"
        ),
    )
    energy: bool = Field(default=False, description="Also write the energy, -log(sum(exp(logits)))")
    engine: Literal["auto", "onnx", "keras"] = Field(
        "auto",
        description=(
            "Inference engine; auto: ONNX Runtime, or Keras if the run was not exported to ONNX"
        ),
    )
    batch_size: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Maximum number of images in a batch; fewer if they are large",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="Cores to use; all processors if null"
    )
    on_error: Literal["stop", "quarantine"] = Field(
        "stop", description="What to do with rows that cannot be scored"
    )
    drift_psi: float = Field(
        0.2,
        gt=0,
        description=(
            "Population stability index above which drift is reported: 0.1 is a moderate "
            "change, 0.25 a large one (Siddiqi 2006)"
        ),
    )
    drift_ks: float = Field(
        0.2, gt=0, le=1, description="Kolmogorov-Smirnov distance above which drift is reported"
    )
    shard_rows: int = Field(
        262_144, ge=1, description="Approximate number of input rows per output file"
    )
