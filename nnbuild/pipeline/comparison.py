"""Compare a run with another one on its own test images.

If the other run was tested on other images, its model scores these. Images that one of the two was
trained or validated on are left out; they are recognised by their digests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.config.sections import GateConfig
from nnbuild.data import dataset_reader
from nnbuild.data.dataset import Digests, Split
from nnbuild.data.dataset_reader import Fingerprint
from nnbuild.engines import Logits
from nnbuild.errors import ContractError, DataError, StoreError, StoreGoneError, one_line
from nnbuild.evaluation import evaluate
from nnbuild.evaluation.promotion import Incomparable, PairedResult
from nnbuild.pipeline.data import dataset_folder, read_golden, workspace_of
from nnbuild.pipeline.step import staged_predictions, staged_table
from nnbuild.store import schemas
from nnbuild.store.manifests import Manifest
from nnbuild.store.run import Run
from nnbuild.store.step_results import BuiltModel, ExportedModel, FittedModel, LoadedData
from nnbuild.store.store import Store
from nnbuild.store.tables import read_table

Labels = NDArray[np.int16]
Rows = NDArray[np.bool_]

_MAX_NAMED = 10


@dataclass(frozen=True, eq=False)
class Challenger:
    """A run in staging with its results on its test images.

    Attributes:
        run: The run.
        data: Result of its step `load_data`.
        folder: Local folder with its dataset.
        fingerprint: Content of its dataset.
        model_digest: SHA-256 of its model, which is equal for equal weights; None if unknown.
        labels: True class of each test image, int16, shape (n,).
        predicted: Predicted class of each test image, int16, shape (n,).
        confidence: Probability of the predicted class, float32, shape (n,).
        kept: Columns that describe the test images; None if none are kept.
        metrics: Metrics on all test images, by name.
    """

    run: Run
    data: LoadedData
    folder: Path
    fingerprint: Fingerprint
    model_digest: str | None
    labels: Labels
    predicted: Labels
    confidence: NDArray[np.float32]
    kept: pa.Table | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The other run, on the test images of the challenger.

    Attributes:
        paired: Which of the two classifies each image correctly.
        rows: Whether each test image of the challenger was compared, bool, shape (n,).
        metrics: Metrics of the other run on all test images of the challenger, by name; empty if
            images were left out, because the challenger's metrics are on all of them.
    """

    paired: PairedResult
    rows: Rows
    metrics: Mapping[str, float]


def challenger_of(run: Run, data: LoadedData) -> Challenger:
    """Read the results of a run in staging.

    Args:
        run: Run in staging, evaluated and scored.
        data: Result of `load_data`.

    Raises:
        DataError: Its dataset is damaged.
        StoreError: Its tables cannot be read.
    """
    folder = dataset_folder(run, data)
    fitted = run.load_result(FittedModel)
    table = staged_predictions(run, data).sort_by("example_id")
    labels, predicted = _predictions(table)
    keep = list(run.config.dataset.keep)
    return Challenger(
        run=run,
        data=data,
        folder=folder,
        fingerprint=dataset_reader.fingerprint(folder, workspace_of(run, keeps_maps=False)),
        model_digest=None if fitted is None else fitted.files.get("model/model.keras"),
        labels=labels,
        predicted=predicted,
        confidence=table["confidence"].to_numpy(),
        kept=table.select(keep) if keep else None,
        metrics=_metrics(read_table(staged_table(run, "evaluation"), schemas.EVALUATION)),
    )


def _predictions(table: pa.Table) -> tuple[Labels, Labels]:
    ordered = table.sort_by("example_id")
    labels, predicted = (np.asarray(ordered[name].to_numpy()) for name in ("label", "predicted"))
    return labels, predicted


def _metrics(evaluation: pa.Table) -> dict[str, float]:
    return {
        row["metric"]: row["value"]
        for row in evaluation.to_pylist()
        if row["subset"] == "test" and row["label"] is None
    }


def compare(
    challenger: Challenger,
    store: Store,
    run_id: str,
    config: GateConfig,
    *,
    role: str = "the champion",
) -> Comparison | Incomparable:
    """Compare a run in staging with a committed run, on the test images of the former.

    If both were evaluated on the same test images, the stored predictions are used. Otherwise the
    model of the committed run scores the images.

    Args:
        challenger: The run in staging.
        store: Store with the committed run.
        run_id: ID of the committed run.
        config: Settings of the gate.
        role: What the committed run is, for messages.

    Returns:
        The comparison, or the reason why there is none: the images or classes differ, no image is
        left to compare, or the model or the dataset of the committed run is missing or damaged.

    Raises:
        StoreError: The store cannot be read now; its content may be sound.
    """
    try:
        manifest = store.manifest(run_id)
        other = _fingerprint(challenger, store, manifest.steps.load_data)
        if reason := _obstacle(challenger.fingerprint, other, config, role):
            return Incomparable(run_id, reason)
        return _compare(challenger, store, manifest, other, role)
    except (ContractError, DataError, StoreError) as error:
        if not _is_damage(error):
            raise
        return Incomparable(run_id, f"run {run_id} cannot be evaluated: {error}")


def compare_on_golden(
    challenger: Challenger, store: Store, run_id: str
) -> PairedResult | Incomparable:
    """Compare a run in staging with a committed run on the fixed set of `gate.golden`.

    Both models score the set.

    Raises:
        StoreError: The store cannot be read now; its content may be sound.
    """
    try:
        golden = read_golden(challenger.run, challenger.data)
        manifest = store.manifest(run_id)
        other = _fingerprint(challenger, store, manifest.steps.load_data)
        rows = ~np.isin(golden.image_digests, _seen(challenger, store, manifest, other))
        if not rows.any():
            left = _nothing_left(len(rows), "images of gate.golden", "the champion")
            return Incomparable(run_id, left)
        split = golden.select(rows)
        own = _own_logits(challenger, split).argmax(axis=1)
        identical = challenger.model_digest == _model_digest(manifest)
        theirs = own if identical else _logits(challenger, store, manifest, split).argmax(axis=1)
    except (ContractError, DataError, StoreError) as error:
        if not _is_damage(error):
            raise
        return Incomparable(run_id, f"it was not compared on the fixed set: {error}")
    return PairedResult(
        run_id=run_id,
        labels=split.labels,
        challenger=own == split.labels,
        other=theirs == split.labels,
        rescored=len(split),
        left_out=int((~rows).sum()),
        identical=identical or bool((own == theirs).all()),
    )


def _seen(challenger: Challenger, store: Store, manifest: Manifest, other: Fingerprint) -> Digests:
    """Return the digests of the images that one of two runs was trained or validated on.

    If a run started from the weights of another one, the images of that run count as well, unless
    the store does not have them any more.
    """
    built, data = challenger.run.load_result(BuiltModel), manifest.steps.load_data
    datasets = {
        (challenger.data.name, challenger.data.digest): challenger.fingerprint,
        (data.name, data.digest): other,
    }
    starts = (None if built is None else built.start, manifest.steps.build_model.start)
    for start in (each for run_id in starts for each in _chain_of_starts(store, run_id)):
        name, digest = start.steps.load_data.name, start.steps.load_data.digest
        if (name, digest) not in datasets and store.has_dataset(name, digest):
            datasets[name, digest] = _stored_fingerprint(challenger, store, name, digest)
    return np.concatenate([each.seen for each in datasets.values()])


def _chain_of_starts(store: Store, run_id: str | None) -> Iterator[Manifest]:
    """Yield a run, the run whose weights it started from, and so on."""
    while run_id is not None and run_id in store.run_ids():
        manifest = store.manifest(run_id)
        yield manifest
        run_id = manifest.steps.build_model.start


def _nothing_left(count: int, what: str, role: str) -> str:
    return (
        f"all {count:,} {what} are left out, because {role} or this run has trained or validated "
        "on them"
    )


def _is_damage(error: Exception) -> bool:
    """Return whether a file is missing or damaged, rather than unavailable for the moment."""
    if isinstance(error, StoreGoneError):
        return False
    cause = error.__cause__
    return not isinstance(cause, OSError) or isinstance(
        cause, (FileNotFoundError, NotADirectoryError)
    )


def _fingerprint(challenger: Challenger, store: Store, data: LoadedData) -> Fingerprint:
    own = challenger.data
    if (data.name, data.digest) == (own.name, own.digest):
        return challenger.fingerprint
    return _stored_fingerprint(challenger, store, data.name, data.digest)


def _stored_fingerprint(
    challenger: Challenger, store: Store, name: str, digest: str
) -> Fingerprint:
    workspace = workspace_of(challenger.run, keeps_maps=False)
    return dataset_reader.fingerprint(store.local_dataset(name, digest), workspace)


def _obstacle(own: Fingerprint, other: Fingerprint, config: GateConfig, role: str) -> str:
    """Return why the datasets of two runs rule out a comparison; empty if they do not."""
    if own.image_shape != other.image_shape:
        shapes = [" × ".join(map(str, each.image_shape)) for each in (other, own)]
        return f"{role} classifies images of {shapes[0]}, this run images of {shapes[1]}"
    if own.class_names != other.class_names:
        return (
            f"{role} has the classes {_named(other)}, this run {_named(own)}, so the two "
            "cannot be compared"
        )
    if own.test_set != other.test_set and config.on_test_set_change == "keep":
        return f"{role} was tested on other images, and gate.on_test_set_change is keep"
    return ""


def _named(fingerprint: Fingerprint) -> str:
    """List the names of the classes, the first of them if there are many."""
    names = [one_line(each) for each in fingerprint.class_names]
    more = f", … ({len(names)} classes)" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _compare(
    challenger: Challenger, store: Store, manifest: Manifest, other: Fingerprint, role: str
) -> Comparison | Incomparable:
    own, run_id = challenger.fingerprint, manifest.run_id
    rows = ~np.isin(own.images["test"], _seen(challenger, store, manifest, other))
    if not rows.any():
        return Incomparable(run_id, _nothing_left(len(rows), "test images", role))
    identical = challenger.model_digest == _model_digest(manifest)
    rescored = 0
    if identical:
        predicted, metrics = challenger.predicted[rows], challenger.metrics
    elif own.test_set == other.test_set:
        predicted = _predictions(store.read_table("predictions", run_id))[1][rows]
        metrics = _metrics(store.read_table("evaluation", run_id))
    else:
        predicted, metrics = _score(challenger, store, manifest, rows)
        rescored = len(predicted)
    labels = challenger.labels[rows]
    paired = PairedResult(
        run_id=run_id,
        labels=labels,
        challenger=challenger.predicted[rows] == labels,
        other=predicted == labels,
        rescored=rescored,
        left_out=int((~rows).sum()),
        identical=identical or bool((challenger.predicted[rows] == predicted).all()),
    )
    return Comparison(paired, rows, metrics if rows.all() else {})


def _model_digest(manifest: Manifest) -> str:
    entry = manifest.files.get(f"runs/{manifest.run_id}/model.keras")
    return "" if entry is None else entry.sha256


def _score(
    challenger: Challenger, store: Store, manifest: Manifest, rows: Rows
) -> tuple[Labels, dict[str, float]]:
    """Return the classes that a committed run predicts for test images, and its metrics on them."""
    workspace = workspace_of(challenger.run)
    split = dataset_reader.read_test_split(challenger.folder, workspace).select(rows)
    logits = _logits(challenger, store, manifest, split)
    values = evaluate(logits, split.labels, logits.shape[1])
    metrics = {each.metric: each.value for each in values if each.label is None}
    return logits.argmax(axis=1).astype(np.int16), metrics


def _logits(challenger: Challenger, store: Store, manifest: Manifest, split: Split) -> Logits:
    """Return the logits of a committed run."""
    # Here, because ONNX Runtime takes time to import, and most decisions need no scoring.
    from nnbuild.scoring import logits_of
    from nnbuild.scoring.models import model_of_run, start_engine

    model = model_of_run(store, manifest)
    run, name = challenger.run, f"the model of run {manifest.run_id}"
    batch = run.config.scoring.batch_size
    with TemporaryDirectory(dir=run.folder) as folder:
        engine = start_engine(model, Path(folder), threads=None, batch_size=batch, name=name)
        return logits_of(engine, split, model.classes, batch)


def _own_logits(challenger: Challenger, split: Split) -> Logits:
    """Return the logits of the run in staging."""
    from nnbuild.engines import Engine, KerasEngine, OnnxEngine
    from nnbuild.scoring import logits_of

    run, batch = challenger.run, challenger.run.config.scoring.batch_size
    exported, fitted = run.load_result(ExportedModel), run.load_result(FittedModel)
    engine: Engine
    if exported is not None and exported.path is not None:
        engine = OnnxEngine(run.root / exported.path)
    elif fitted is not None:
        from nnbuild.pipeline.training import read_model  # it imports TensorFlow

        engine = KerasEngine(read_model(run, fitted), batch)
    else:
        raise StoreError(f"run {run.run_id} has no fitted model; {run.resume_command}")
    return logits_of(engine, split, challenger.data.classes, batch)
