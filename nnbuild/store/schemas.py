"""The schema of every table. Writers accept nothing else, so that queries remain valid.

All tables are partitioned by `run_id`, those of scoring jobs by `score_id`, and those of labels by
`label_id`; the key is in the name of the folder and not in the files.
"""

from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Any

import pyarrow as pa

from nnbuild.errors import StoreError, one_line

SCHEMA_VERSION = "1"
_VERSION_KEY = b"nnbuild.schema_version"
_UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")


def _field(name: str, kind: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


def _table(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={_VERSION_KEY: SCHEMA_VERSION.encode()})


RUNS = _table(
    _field("status", pa.string(), "succeeded or failed"),
    _field("error", pa.string(), "Why the run failed; null if it succeeded", nullable=True),
    _field("started_at", _UTC_MICROSECONDS, "When the run began"),
    _field("finished_at", _UTC_MICROSECONDS, "When the run was committed"),
    _field("dataset", pa.string(), "Name of what was really trained on", nullable=True),
    _field("dataset_digest", pa.string(), "sha256 of the dataset's payload", nullable=True),
    _field("model", pa.string(), "Name of the network"),
    _field("seed", pa.int64(), "Of the split, the weights and the order of examples"),
    _field("epochs", pa.int32(), "Epochs that were finished"),
    _field("test_accuracy", pa.float64(), "Share of test examples classified right", nullable=True),
    _field(
        "test_loss", pa.float64(), "Mean cross-entropy on the test examples, in nats", nullable=True
    ),
    _field("promoted", pa.bool_(), "Whether the run became the champion"),
    _field(
        "flow_run_id",
        pa.string(),
        "Prefect's id of the flow run; null outside Prefect",
        nullable=True,
    ),
    _field("code_version", pa.string(), "Version of nnbuild, and the commit where it is known"),
    _field("config", pa.string(), "The resolved config, as JSON"),
)

HISTORY = _table(
    _field("epoch", pa.int32(), "From 1"),
    _field("metric", pa.string(), "Keras's key, or learning_rate, or epoch_seconds"),
    _field("value", pa.float64(), "The metric at the end of the epoch"),
    _field("logged_at", _UTC_MICROSECONDS, "When the epoch ended"),
)

EVALUATION = _table(
    _field("subset", pa.string(), "Always test"),
    _field("metric", pa.string(), "Name of the metric"),
    _field("label", pa.int16(), "The class it is about; null for all classes", nullable=True),
    _field("value", pa.float64(), "The metric"),
)

CONFUSION = _table(
    _field("subset", pa.string(), "Always test"),
    _field("label", pa.int16(), "True class"),
    _field("predicted", pa.int16(), "Class with the largest logit"),
    _field("count", pa.int64(), "Examples"),
)

CALIBRATION = _table(
    _field("subset", pa.string(), "test or validation"),
    _field("temperature", pa.float64(), "What the logits were divided by; 1 is the plain softmax"),
    _field("expected_calibration_error", pa.float64(), "Of the whole subset at this temperature"),
    _field("bin_lower", pa.float64(), "The bin holds confidences above this"),
    _field("bin_upper", pa.float64(), "and up to this"),
    _field("count", pa.int64(), "Examples in the bin"),
    _field(
        "mean_confidence",
        pa.float64(),
        "Mean of the largest probability; null if empty",
        nullable=True,
    ),
    _field("accuracy", pa.float64(), "Share classified right; null if empty", nullable=True),
)

DATASET_PARTS = _table(
    _field("day", pa.date32(), "The day"),
    _field("version", pa.int32(), "Version of the day, from 1"),
    _field("rows", pa.int64(), "Images of the day that were used so"),
    _field("digest", pa.string(), "sha256 of the day's content"),
    _field("used_for", pa.string(), "train, validation or test"),
    _field("ingested_at", _UTC_MICROSECONDS, "When this version was ingested"),
)


DECISIONS = _table(
    _field(
        "champion", pa.string(), "The run that stood before; null if there was none", nullable=True
    ),
    _field("rule", pa.string(), "not-worse or better"),
    _field("promoted", pa.bool_(), "What was decided"),
    _field("outcome", pa.string(), "What the gate did", nullable=True),
    _field("reason", pa.string(), "Why"),
    _field("accuracy", pa.float64(), "The challenger's, on the test examples"),
    _field("champion_accuracy", pa.float64(), "The champion's; null without one", nullable=True),
    _field(
        "examples", pa.int64(), "Test examples compared; null if the two were not", nullable=True
    ),
    _field("only_champion", pa.int64(), "Examples that only the champion has right", nullable=True),
    _field(
        "only_challenger", pa.int64(), "Examples that only the challenger has right", nullable=True
    ),
    _field(
        "p_worse",
        pa.float64(),
        "Exact McNemar test, one-sided: small if the challenger is worse",
        nullable=True,
    ),
    _field(
        "p_better", pa.float64(), "The same the other way: small if it is better", nullable=True
    ),
    _field(
        "difference", pa.float64(), "The challenger's accuracy less the champion's", nullable=True
    ),
    _field("low", pa.float64(), "Lower end of its 95 % interval", nullable=True),
    _field("high", pa.float64(), "Upper end", nullable=True),
    _field("recall_drop", pa.float64(), "Largest drop of a class's recall", nullable=True),
    _field("recall_label", pa.int16(), "That class", nullable=True),
    _field("recall_p", pa.float64(), "Whether the drop is too large, corrected", nullable=True),
    _field("margin", pa.float64(), "Largest loss of accuracy allowed", nullable=True),
    _field("bound", pa.float64(), "Lower confidence bound of the difference", nullable=True),
    _field("needed", pa.int64(), "Test images needed to tell", nullable=True),
    _field("anchor", pa.string(), "The past champion compared as well", nullable=True),
    _field("anchor_bound", pa.float64(), "Lower bound against the anchor", nullable=True),
    _field("golden_bound", pa.float64(), "Lower bound on the golden set", nullable=True),
    _field("rescored", pa.int64(), "Images that the champion scored", nullable=True),
    _field("left_out", pa.int64(), "Test images not compared", nullable=True),
    _field("decided_at", _UTC_MICROSECONDS, "When"),
)

SLICES = _table(
    _field("column_name", pa.string(), "Column of the source that describes the images"),
    _field("value", pa.string(), "Value of the column", nullable=True),
    _field("rows", pa.int64(), "Test images with this value"),
    _field("accuracy", pa.float64(), "Share of them classified right"),
    _field("accuracy_low", pa.float64(), "Lower end of its 95 % interval"),
    _field("accuracy_high", pa.float64(), "Upper end"),
    _field("calibration_error", pa.float64(), "Expected calibration error"),
    _field("compared", pa.int64(), "Images compared with the champion", nullable=True),
    _field("champion_accuracy", pa.float64(), "The champion's, on these", nullable=True),
    _field("difference", pa.float64(), "This run's less the champion's", nullable=True),
    _field(
        "p_worse", pa.float64(), "Small if this run is worse by more than allowed", nullable=True
    ),
    _field("p_corrected", pa.float64(), "The same, by Holm for all slices", nullable=True),
)

SCORE_JOBS = _table(
    _field(
        "run_id", pa.string(), "The run whose model scored; null for a model file", nullable=True
    ),
    _field("model_digest", pa.string(), "sha256 of the model file"),
    _field("input", pa.string(), "What was scored, as it was given"),
    _field(
        "output", pa.string(), "Folder of the rows; null if they are in `scores`", nullable=True
    ),
    _field("rows", pa.int64(), "Rows that were scored"),
    _field("written", pa.int64(), "Of these, rows that were asked for"),
    _field("quarantined", pa.int64(), "Rows that could not be scored"),
    _field("engine", pa.string(), "onnx or keras"),
    _field("temperature", pa.float64(), "What the logits were divided by"),
    _field("started_at", _UTC_MICROSECONDS, "When the job began"),
    _field("finished_at", _UTC_MICROSECONDS, "When the job was committed"),
    _field("day", pa.date32(), "Day of the images; null if it was not given", nullable=True),
    _field(
        "identifier",
        pa.string(),
        "What identifies a row: row, path, integer or text; null in old jobs",
        nullable=True,
    ),
    _field(
        "input_digest",
        pa.string(),
        "sha256 of names, sizes and versions of the input files; null in old jobs",
        nullable=True,
    ),
    _field(
        "shadow_run_id",
        pa.string(),
        "Run that scored the same rows into `shadow_scores`; null without one",
        nullable=True,
    ),
)


CLASSES = _table(
    _field("label", pa.int16(), "Number of the class, from 0"),
    _field("name", pa.string(), "Its name"),
)

LABELS = _table(
    _field(
        "example_id",
        pa.int64(),
        "Integer that identifies the example; null for text",
        nullable=True,
    ),
    _field(
        "example_key",
        pa.string(),
        "Text that identifies it, such as a path; else null",
        nullable=True,
    ),
    _field(
        "score_id",
        pa.string(),
        "Job whose input the ID belongs to; null if the ID is the same in all jobs",
        nullable=True,
    ),
    _field(
        "input_digest",
        pa.string(),
        "Digest of that input, as in score_jobs; null without a job",
        nullable=True,
    ),
    _field("label", pa.int16(), "True class, in the run that scored the newest job with this ID"),
    _field(
        "label_name",
        pa.string(),
        "Name of that class, which counts if runs differ in their classes",
        nullable=True,
    ),
    _field("observed_at", _UTC_MICROSECONDS, "When the label was observed; the newest one counts"),
    _field("ingested_at", _UTC_MICROSECONDS, "When the label arrived in the store"),
    _field("version", pa.int32(), "Number of the label of its example by arrival, from 1"),
    _field("source", pa.string(), "File that it came from"),
    _field("source_row", pa.int64(), "Row in that file, from 0"),
)

LABEL_JOBS = _table(
    _field("source", pa.string(), "File that the labels came from"),
    _field("digest", pa.string(), "sha256 of the file's content and of the columns that were read"),
    _field("rows", pa.int64(), "Rows of the file that were taken up"),
    _field("labelled", pa.int64(), "Of these, first labels of an example"),
    _field("corrected", pa.int64(), "Labels that changed the one that counts"),
    _field("repeated", pa.int64(), "Labels that left the one that counts as it was"),
    _field("quarantined", pa.int64(), "Rows that could not be used"),
    _field("ingested_at", _UTC_MICROSECONDS, "When the labels arrived in the store"),
)

LIVE = _table(
    _field("period", pa.string(), "day or week"),
    _field("start", pa.date32(), "First day of the period"),
    _field("dataset", pa.string(), "Dataset of the run", nullable=True),
    _field("rows", pa.int64(), "Rows that were scored"),
    _field("labelled", pa.int64(), "Of these, rows with a label"),
    _field("accuracy", pa.float64(), "Share of them classified right", nullable=True),
    _field("accuracy_low", pa.float64(), "Lower end of its 95 % interval", nullable=True),
    _field("accuracy_high", pa.float64(), "Upper end", nullable=True),
    _field(
        "expected_calibration_error", pa.float64(), "Of the calibrated confidence", nullable=True
    ),
    _field("negative_log_likelihood", pa.float64(), "Of the label, in nats", nullable=True),
    _field(
        "estimated_accuracy",
        pa.float64(),
        "Mean calibrated confidence of all rows; needs no labels",
        nullable=True,
    ),
    _field(
        "estimated_accuracy_atc",
        pa.float64(),
        "Share of rows whose calibrated confidence is above the run's threshold",
        nullable=True,
    ),
    _field(
        "realised_minus_estimated", pa.float64(), "accuracy less estimated_accuracy", nullable=True
    ),
    _field("computed_at", _UTC_MICROSECONDS, "When the row was computed"),
)

LIVE_SHADOWS = _table(
    _field("period", pa.string(), "day, week, or all for the whole time"),
    _field("start", pa.date32(), "First day of the period"),
    _field("dataset", pa.string(), "Dataset of the run", nullable=True),
    _field("shadow_run_id", pa.string(), "Run that scored the same rows as a shadow"),
    _field("labelled", pa.int64(), "Examples with a label that both have scored"),
    _field("accuracy", pa.float64(), "Share of them that the run classifies right"),
    _field("shadow_accuracy", pa.float64(), "Share that the shadow classifies right"),
    _field("only_champion", pa.int64(), "Examples that only the run has right"),
    _field("only_challenger", pa.int64(), "Examples that only the shadow has right"),
    _field("difference", pa.float64(), "shadow_accuracy less accuracy"),
    _field("low", pa.float64(), "Lower end of its 95 % interval"),
    _field("high", pa.float64(), "Upper end"),
    _field("p_worse", pa.float64(), "Exact McNemar test, one-sided: small if the shadow is worse"),
    _field("p_better", pa.float64(), "The same the other way: small if it is better"),
    _field("evidence", pa.float64(), "Evidence that the shadow is better, an e-value"),
    _field("computed_at", _UTC_MICROSECONDS, "When the row was computed"),
)

LIVE_SLICES = pa.schema(
    [
        *(LIVE.field(name) for name in ("period", "start")),
        _field("column_name", pa.string(), "Column that the scoring jobs have kept"),
        _field("value", pa.string(), "Value of the column", nullable=True),
        *(
            LIVE.field(name)
            for name in LIVE.names
            if name not in {"period", "start", "dataset", "negative_log_likelihood"}
        ),
    ],
    LIVE.metadata,
)

LIVE_ALARMS = _table(
    _field("event", pa.string(), "dropped or recovered"),
    _field("at", _UTC_MICROSECONDS, "When it was found"),
    _field("labelled", pa.int64(), "Labelled rows until then"),
    _field("accuracy", pa.float64(), "Accuracy on them"),
    _field("reference", pa.float64(), "Accuracy on the test images"),
    _field("floor", pa.float64(), "Accuracy that the run must not fall below"),
    _field("evidence", pa.float64(), "Evidence against it, an e-value"),
    _field("threshold", pa.float64(), "Evidence at which the alarm is raised"),
)


DRIFT = _table(
    _field(
        "run_id", pa.string(), "The run whose model scored, and whose reference it is held against"
    ),
    _field("measure", pa.string(), "predicted, confidence, brightness, ink or energy"),
    _field(
        "statistic",
        pa.string(),
        "psi, the population stability index; ks, the Kolmogorov-Smirnov distance",
    ),
    _field("value", pa.float64(), "Of the statistic"),
    _field(
        "threshold",
        pa.float64(),
        "As asked for, or what chance reaches with so few rows if that is more",
    ),
    _field("exceeded", pa.bool_(), "Whether the value is above the threshold"),
    _field("rows", pa.int64(), "Rows that were compared"),
    _field("reference_rows", pa.int64(), "Validation images of the reference"),
    _field("measured_at", _UTC_MICROSECONDS, "When the job was committed"),
)


CHAMPIONS = _table(
    _field("dataset", pa.string(), "Name of the dataset"),
    _field("previous", pa.string(), "The champion before; null if there was none", nullable=True),
    _field("changed_at", _UTC_MICROSECONDS, "Time of the change"),
    _field("changed_by", pa.string(), "gate, promote, rollback or unpin"),
    _field("who", pa.string(), "User and host of the person; null for the gate", nullable=True),
    _field("note", pa.string(), "Reason; null if not given", nullable=True),
    _field("pinned", pa.bool_(), "Whether the gate has to leave this champion alone"),
)
CHAMPIONS_TABLE = "champions"
PREDICTED_NAME = _field("predicted_name", pa.string(), "Name of the predicted class")
CHAMPION_PREDICTED = _field(
    "champion_predicted", pa.int16(), "Class that the model of the job predicted, as in `scores`"
)
EXAMPLE_KEY = _field("example_key", pa.string(), "Text that identifies the example")


@cache
def predictions(classes: int, *, named: bool = False) -> pa.Schema:
    """Return the schema of `predictions` for a number of classes.

    Args:
        classes: Number of classes.
        named: Whether the classes have names, so that there is a column `predicted_name`.
    """
    return _table(
        _field("example_id", pa.int64(), "Row of the example in its split, from 0"),
        _field("label", pa.int16(), "True class; null if it is not known", nullable=True),
        _field("predicted", pa.int16(), "Class with the largest logit"),
        _field("confidence", pa.float32(), "Probability of the predicted class"),
        _field("log_prob", pa.float32(), "Natural logarithm of that probability, finite always"),
        *(
            _field(f"prob_{label}", pa.float32(), f"Probability of class {label}")
            for label in range(classes)
        ),
        *([PREDICTED_NAME] if named else []),
    )


STATIC_SCHEMAS = {
    "runs": RUNS,
    "history": HISTORY,
    "evaluation": EVALUATION,
    "confusion": CONFUSION,
    "calibration": CALIBRATION,
    "decisions": DECISIONS,
    CHAMPIONS_TABLE: CHAMPIONS,
    "dataset_parts": DATASET_PARTS,
    "slices": SLICES,
    "score_jobs": SCORE_JOBS,
    "drift": DRIFT,
    "classes": CLASSES,
    "labels": LABELS,
    "label_jobs": LABEL_JOBS,
    "live": LIVE,
    "live_shadows": LIVE_SHADOWS,
    "live_slices": LIVE_SLICES,
    "live_alarms": LIVE_ALARMS,
}
TABLES = (*STATIC_SCHEMAS, "predictions", "scores", "shadow_scores")
JOB_TABLES = ("scores", "shadow_scores", "score_jobs", "drift")
"""The tables that are partitioned by `score_id`."""
LABEL_TABLES = ("labels", "label_jobs")
"""The tables that are partitioned by `label_id`."""


def partition_key(name: str) -> str:
    """Return the name of the column that a table is partitioned by."""
    if name in LABEL_TABLES:
        return "label_id"
    return "score_id" if name in JOB_TABLES else "run_id"


def table_of(schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Build a table from rows that have exactly the columns of a schema.

    Raises:
        StoreError: A row has an extra column, lacks one, or has a value of another type.
    """
    for row in rows:
        if row.keys() != set(schema.names):
            raise StoreError(
                f"row has columns {sorted(row)}, expected {sorted(schema.names)}; change "
                "nnbuild.store.schemas first"
            )
    try:
        return validate(pa.Table.from_pylist(list(rows), schema=schema), schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise StoreError(
            f"a value does not fit its column: {error}; change nnbuild.store.schemas first"
        ) from error


def validate(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table if it has exactly the given schema.

    Raises:
        StoreError: A column is missing, extra, out of order, of another type, or null although
            its schema allows no nulls.
    """
    if not table.schema.equals(schema, check_metadata=True):
        raise StoreError(
            f"table has columns {table.schema.names}, expected {schema.names} with the types and "
            "metadata of the schema"
        )
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise StoreError(f"column {field.name!r} has nulls, but its schema allows none")
    return table


def require_columns(name: str, schema: pa.Schema, where: str) -> None:
    """Require the columns that every file of a table has.

    Args:
        name: Name of the table; files of unknown tables need no columns.
        schema: Arrow schema of the file.
        where: Name of the file for the message.

    Raises:
        StoreError: A column is missing or has another type; the message names it.
    """
    for field in expected_columns(name, schema):
        place = schema.get_field_index(field.name)
        if place < 0 and not field.nullable:
            raise StoreError(
                f"{where} is not a file of {name}: it has no column {field.name!r}; "
                "restore it from a copy"
            )
        if place >= 0 and not schema.field(place).type.equals(field.type):
            raise StoreError(
                f"{where} is not a file of {name}: its column {field.name!r} is "
                f"{schema.field(place).type}, expected {field.type}; restore it from a copy"
            )


def expected_columns(name: str, schema: pa.Schema) -> pa.Schema:
    """Return the columns that nnbuild writes to every file of a table.

    Args:
        name: Name of the table.
        schema: Schema of a file, from which the number of classes is read.
    """
    if name in STATIC_SCHEMAS:
        return STATIC_SCHEMAS[name]
    if name not in TABLES:
        return pa.schema([])
    classes = next(each for each in count() if f"prob_{each}" not in schema.names)
    return predictions(max(classes, 1))


def require_version(schema: pa.Schema, where: str) -> None:
    """Require that a file has this schema version.

    Raises:
        StoreError: The file has another version; the message names both.
    """
    version = (schema.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{where} has schema version {one_line(version)}, expected {SCHEMA_VERSION}; use the "
            "version of nnbuild that wrote it"
        )


def documented(name: str) -> pa.Schema:
    """Return the schema of a table with the columns that only some of its files have.

    Args:
        name: Name of the table, one of `TABLES`; those with probabilities have one class.
    """
    if name in STATIC_SCHEMAS:
        return STATIC_SCHEMAS[name]
    schema = predictions(1, named=True)
    if name == "predictions":
        return schema
    schema = schema.append(EXAMPLE_KEY)
    return schema.append(CHAMPION_PREDICTED) if name == "shadow_scores" else schema
