"""Values for the report, from the tables and the manifest of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.engines import describe_engine, engine_of_run
from nnbuild.report.charts import Bin
from nnbuild.report.names import isolate
from nnbuild.store.manifests import Manifest
from nnbuild.store.step_results import Reported
from nnbuild.training.history import SECONDS

SHOWN_CLASSES = 20
_MAX_CONFUSIONS = 8
_TEST = "test"
_REPORT = Reported.step  # this step writes the page, which cannot contain its own duration

Points = list[tuple[float, float]]


class Confusion(NamedTuple):
    """Number of images of one class that were predicted as another."""

    label: str
    predicted: str
    images: int


@dataclass(frozen=True)
class Errors:
    """Incorrect predictions on the test images.

    Attributes:
        counts: Confusion matrix, int64, shape (classes, classes), with a row for each true class.
        shown: Labels of the classes to show, at most 20: those with the most errors, in order.
        most: Most frequent confusions, in descending order.
    """

    counts: NDArray[np.int64]
    shown: list[int]
    most: list[Confusion]

    @property
    def images(self) -> int:
        """Return the number of test images."""
        return int(self.counts.sum())

    @property
    def incorrect(self) -> int:
        """Return the number of test images that are classified incorrectly."""
        return self.images - int(np.trace(self.counts))


def overall(evaluation: pa.Table) -> dict[str, float]:
    """Return the metrics over all classes of the test set."""
    return {row["metric"]: row["value"] for row in _of_test(evaluation) if row["label"] is None}


def by_class(evaluation: pa.Table) -> dict[int, dict[str, float]]:
    """Return the metrics of each class of the test set, by label."""
    metrics: dict[int, dict[str, float]] = {}
    for row in _of_test(evaluation):
        if row["label"] is not None:
            metrics.setdefault(row["label"], {})[row["metric"]] = row["value"]
    return metrics


def _of_test(table: pa.Table) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["subset"] == _TEST]


def errors(confusion: pa.Table, names: list[str]) -> Errors:
    """Return the incorrect predictions from the `confusion` table."""
    counts = np.zeros((len(names), len(names)), np.int64)
    test = np.array(confusion["subset"].to_pylist()) == _TEST
    columns = (confusion[name].to_numpy()[test] for name in ("label", "predicted", "count"))
    labels, predicted, count = columns
    counts[labels, predicted] = count
    off = counts - np.diag(np.diag(counts))
    shown = np.sort(np.argsort(-(off.sum(axis=0) + off.sum(axis=1)), kind="stable")[:SHOWN_CLASSES])
    most = np.argsort(-off, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    pairs = [tuple(map(int, divmod(int(cell), len(names)))) for cell in most]
    return Errors(
        counts,
        [int(each) for each in shown],
        [Confusion(names[a], names[b], int(off[a, b])) for a, b in pairs if off[a, b]],
    )


def curves(history: pa.Table) -> dict[str, Points]:
    """Return the points (epoch, value) of each metric, in the order of the history."""
    points: dict[str, Points] = {}
    ordered = history.sort_by("epoch")
    columns = (ordered[name].to_pylist() for name in ("metric", "epoch", "value"))
    for metric, epoch, value in zip(*columns, strict=True):
        if metric != SECONDS:
            points.setdefault(metric, []).append((epoch, value))
    return points


class Diagram(NamedTuple):
    """Reliability diagram at one temperature, with its expected calibration error."""

    temperature: float
    error: float
    bins: list[Bin]


def diagrams(calibration: pa.Table) -> list[Diagram]:
    """Return the reliability diagrams of the test set, before and after temperature scaling."""
    bins: dict[tuple[float, float], list[Bin]] = {}
    for row in sorted(_of_test(calibration), key=lambda each: float(each["bin_lower"])):
        key = row["temperature"], row["expected_calibration_error"]
        each = Bin(
            row["bin_lower"],
            row["bin_upper"],
            row["count"],
            row["mean_confidence"],
            row["accuracy"],
        )
        bins.setdefault(key, []).append(each)
    return [Diagram(*key, bins[key]) for key in sorted(bins, key=lambda each: each[0] != 1)]


def confidences(predictions: pa.Table, bins: int = 20) -> tuple[list[int], list[int]]:
    """Count the correct and the incorrect predictions in bins of confidence from 0 to 1."""
    known = predictions.filter(predictions["label"].is_valid())
    confidence = known["confidence"].to_numpy()
    correct = known["label"].to_numpy() == known["predicted"].to_numpy()

    def counts(rows: NDArray[np.bool_]) -> list[int]:
        histogram, _ = np.histogram(confidence[rows], bins=bins, range=(0, 1))
        return [int(each) for each in histogram]

    return counts(correct), counts(~correct)


class Networks(NamedTuple):
    """The networks of a run: one, or the members of an ensemble.

    Attributes:
        size: Number of networks.
        total: Number of epochs over all of them, as the history counts them.
        each: Number of epochs of each network; None if the run does not record it.
    """

    size: int
    total: int
    each: int | None

    @property
    def epochs(self) -> str:
        """Return the number of epochs in words; for an ensemble also the number of networks."""
        if self.size == 1:
            return _epochs(self.total)
        if self.each is None:
            return f"{self.size} networks, {_epochs(self.total)} in all"
        return f"{self.size} networks of {_epochs(self.each)} each"


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


def networks(manifest: Manifest) -> Networks:
    """Return the networks of a run, and for how many epochs each was trained.

    The history numbers the epochs of the members of an ensemble one after another. With early
    stopping, it does not say how many each has; without, they have as many as were configured.
    """
    total = manifest.steps.fit_model.epochs
    size = int(manifest.config.get("model", {}).get("ensemble_size", 1))
    configured = manifest.config["training"].get("epochs")
    if size == 1:
        return Networks(1, total, total)
    return Networks(size, total, configured if total == size * (configured or 0) else None)


def split_curves(curves: dict[str, Points], epochs: int) -> list[dict[str, Points]]:
    """Return the curves of each network of an ensemble, with epochs from 1.

    Args:
        curves: Curves of all networks, one after another.
        epochs: Number of epochs of each network.
    """
    members: dict[int, dict[str, Points]] = {}
    for name, points in curves.items():
        for epoch, value in points:
            number, earlier = divmod(int(epoch) - 1, epochs)
            members.setdefault(number, {}).setdefault(name, []).append((earlier + 1, value))
    return [members[number] for number in sorted(members)]


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return names and values that describe the run, in the order of the report."""
    return list(_facts(manifest))


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    steps, machine, settings = manifest.steps, manifest.machine, manifest.settings
    data, fitted = steps.load_data, steps.fit_model
    height, width, channels = data.image_shape
    yield "run", manifest.run_id
    yield "started", manifest.row.started_at
    if manifest.flow_run_id:
        yield "Prefect flow run", manifest.flow_run_id
    yield "data source", data.source
    counts = f"{data.train:,} for training, {data.test:,} for testing"
    yield "images", f"{counts}; {height} × {width} × {channels}"
    if data.preprocessing is not None:
        shown = [f"{name} {each}" for name, each in data.preprocessing.items()]
        yield "preprocessing", ", ".join(shown)
    fraction = f"{100 * settings.training.validation_fraction:g} %"
    yield (
        "validation",
        f"{data.validation:,} images of the validation split of the dataset"
        if data.validation
        else f"{fraction} of the training images, selected by the seed",
    )
    yield "seed", str(settings.seed)
    yield (
        "network",
        f"{isolate(manifest.row.model)}, {steps.build_model.parameters:,} parameters",
    )
    trained = networks(manifest)
    yield (
        "weights",
        f"of epoch {fitted.weights_epoch} of {fitted.epochs}"
        if trained.size == 1
        else f"of {trained.epochs}",
    )
    yield "scoring", describe_engine(*engine_of_run(manifest))
    for remark in fitted.remarks:
        yield "resumed", remark
    yield "code", manifest.code_version
    yield (
        "machine",
        f"{machine.system}, {machine.processors} processors, Python {machine.python}",
    )


def timings(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the seconds of each step in order, and their fraction of the longest step."""
    done = {name: seconds for name, seconds in manifest.seconds.items() if name != _REPORT}
    order = {name: place for place, name in enumerate(manifest.steps.reached())}
    longest = max(done.values(), default=0.0) or 1.0
    return [
        {"name": name.replace("_", " "), "seconds": done[name], "share": done[name] / longest}
        for name in sorted(done, key=lambda each: (order.get(each, len(order)), each))
    ]


def digests(manifest: Manifest) -> dict[str, str]:
    """Return the SHA-256 of the dataset, the config and each file of a step, by name."""
    result = {
        "dataset": manifest.steps.load_data.digest,
        "config": manifest.config_digest,
    }
    for name, step in manifest.steps.reached().items():
        if name != _REPORT:
            result |= step.files
    return result
