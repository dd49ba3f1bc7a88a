"""Content of each section of the report, from the manifest and the tables."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from nnbuild.config.loading import flatten
from nnbuild.evaluation.metrics import SUMMARY_METRICS, Metric
from nnbuild.evaluation.significance import wilson_interval
from nnbuild.report import charts, data, examples, live, text
from nnbuild.report.charts import heat_map
from nnbuild.report.facts import digests, facts, timings
from nnbuild.report.metric_charts import metric_chart, names_of_charts
from nnbuild.report.names import shorten
from nnbuild.report.networks import networks_in
from nnbuild.report.text import percent, setting
from nnbuild.store.manifests import Manifest

_SHORT_NAME = 3  # letters of class names of which eight fit in a row on a phone
_MAX_JOBS = 10
_MAX_SLICES = 20

Tables = Mapping[str, Any]
Context = dict[str, Any]


def opening(manifest: Manifest, tables: Tables) -> Context:
    """Return the content of the header: network, dataset and accuracy."""
    row, dataset = manifest.row, manifest.settings.dataset
    images, requested = len(tables["predictions"]), dataset.name
    accuracy = data.overall(tables["evaluation"]).get("accuracy")
    started = datetime.fromisoformat(row.started_at)
    return {
        "run_id": manifest.run_id,
        "model": row.model,
        "dataset": row.dataset,
        "requested": requested,
        "fallback": manifest.fell_back,
        "started": f"{started.day} {started:%B %Y, %H:%M} UTC",
        "data": manifest.steps.load_data,
        "networks": networks_in(manifest),
        "images": images,
        "accuracy": accuracy,
        "interval": None if accuracy is None else wilson_interval(accuracy, images),
    }


def gate(manifest: Manifest, tables: Tables) -> Context:
    """Return the content of "Is it better than the last one?"."""
    decision = manifest.steps.decide
    mine = data.overall(tables["evaluation"])
    champion = decision.champion if decision else None
    paired = decision.figures if decision else {}
    names = ("only_challenger", "only_champion")
    tested = champion is not None and all(name in paired for name in names)
    # Without a paired test, the metrics that earlier versions kept are those of other test images.
    theirs = decision.champion_metrics if decision and tested else {}
    counts = [paired[name] for name in names] if tested else []
    return {
        "headline": [
            _metric(each, mine.get(each.name), theirs.get(each.name)) for each in SUMMARY_METRICS
        ],
        "champion": champion,
        "champion_metrics": bool(theirs),
        "promoted": decision.promote if decision else None,
        "verdict": text.verdict(decision) if decision else "",
        "champion_answer": text.on_champion(paired) if tested else "",
        "compared_answer": text.on_compared_images(paired) if tested else "",
        "paired_answer": text.on_paired(paired) if tested else "",
        "paired": [
            (name, name, count / max(*counts, 1), f"{count:,.0f}", kind)
            for name, count, kind in zip(
                ("this run", "the champion"), counts, ("true", "predicted"), strict=True
            )
        ]
        if tested
        else [],
    }


def _metric(metric: Metric, mine: float | None, theirs: float | None) -> Context:
    values = [
        None if each is None else percent(each) if metric.is_fraction else f"{each:.4f}"
        for each in (mine, theirs)
    ]
    better = (
        None
        if mine is None or theirs is None or mine == theirs
        else (mine > theirs) == metric.higher_is_better
    )
    return {
        "title": metric.title,
        "value": values[0] or "–",
        "champion": values[1],
        "better": better,
    }


def loss(manifest: Manifest, tables: Tables) -> Context:
    """Return the content of "Did the loss go down?", with a chart for each metric."""
    curves, networks = data.curves(tables["history"]), networks_in(manifest)
    restored = manifest.steps.fit_model.weights_epoch
    pictures = [
        {
            "title": name.replace("_", " "),
            "picture": metric_chart(curves, name, networks, restored),
        }
        for name in names_of_charts(curves)
    ]
    if networks.size == 1:
        answer, marks = text.on_loss(curves, restored), text.on_marks(restored, len(pictures))
    elif networks.each is None:
        answer, marks = text.on_unsplit_losses(networks.epochs), ""
    else:
        answer, marks = text.on_losses(networks.split(curves)), "One line for each network."
    return {
        "loss_answer": answer,
        "rate_answer": text.on_rate(curves),
        "curves": pictures,
        "marks_answer": marks,
    }


def errors(tables: Tables, names: list[str]) -> Context:
    """Return the content of "Where is it wrong?": confusion matrix and metrics by class."""
    mistakes = data.errors(tables["confusion"], names)
    by_class = data.by_class(tables["evaluation"])
    shown = mistakes.shown
    title = (
        f"Confusion matrix of {len(shown)} classes: {mistakes.incorrect:,} of "
        f"{mistakes.images:,} images incorrect"
    )
    least = {
        metric: min((each.get(metric, 1.0) for each in by_class.values()), default=None)
        for metric in ("precision", "recall", "f1")
    }
    return {
        "errors_answer": text.on_errors(mistakes, names, by_class),
        "confusion": heat_map(
            title,
            mistakes.counts[np.ix_(shown, shown)].tolist(),
            [names[each] for each in shown],
            mistakes.counts.sum(axis=1)[shown].tolist(),
            shorten(names),
        ),
        "shown": len(shown),
        "classes": len(names),
        "by_class": [{"name": names[each], **by_class.get(each, {})} for each in shown],
        "least": least,
        "most": mistakes.most,
    }


def slices(tables: Tables) -> Context:
    """Return the content of "For which images is it wrong?"; empty if no columns are kept."""
    rows = tables["slices"].to_pylist() if "slices" in tables else []
    # By the upper bound: a slice of a few images that is wrong by chance is not shown first.
    lowest = sorted(rows, key=lambda each: float(each["accuracy_high"]))[:_MAX_SLICES]
    return {"slices": lowest, "slices_answer": text.on_slices(lowest, len(rows))}


def trust(tables: Tables) -> Context:
    """Return the content of "Can the probabilities be trusted?"."""
    correct, incorrect = data.confidences(tables["predictions"])
    mean = (
        float(tables["predictions"]["confidence"].to_numpy().mean())
        if len(tables["predictions"])
        else 0.0
    )
    error = data.overall(tables["evaluation"]).get("expected_calibration_error")
    diagrams = data.diagrams(tables["calibration"])
    return {
        "trust_answer": text.on_trust(correct, incorrect, mean, error),
        "scaling_answer": text.on_scaling(diagrams),
        "diagrams": [
            {
                "title": text.diagram_title(each),
                "error": each.error,
                "picture": charts.reliability(
                    f"Reliability diagram, {text.diagram_title(each)}: "
                    f"calibration error {each.error:.4f}",
                    each.bins,
                ),
            }
            for each in diagrams
        ],
        "confidence": charts.histogram(
            text.histogram_title(correct, incorrect), correct, incorrect
        ),
    }


def shown(tables: Tables, images: NDArray[np.uint8] | None, names: list[str]) -> Context:
    """Return the content of "What does it see?" and "The worst errors"."""
    if images is None:
        return {"samples": [], "worst": [], "pixelated": "", "narrow": False}
    return {
        "samples": examples.samples(tables["predictions"], images, names),
        "worst": examples.worst(tables["predictions"], images, names),
        "pixelated": Markup(' class="pixels"') if examples.pixelated(images) else "",
        "narrow": max(map(len, names)) <= _SHORT_NAME,
    }


def drifted(jobs: Sequence[Mapping[str, Any]]) -> Context:
    """Return the content of "Does new data still look the same?"."""
    points = [(float(place), job["psi"]) for place, job in enumerate(jobs, start=1)]
    title = "largest population stability index of each scoring job"
    return {
        "drift": list(reversed(jobs))[:_MAX_JOBS],
        "drift_answer": text.on_drift(jobs),
        "drift_chart": charts.lines(
            text.curve_title(title, {"": points}),
            {"": points},
            log=True,
            label="scoring job, oldest first",
        )
        if len(points) > 1
        else "",
    }


def live_accuracy(periods: Sequence[Mapping[str, Any]]) -> Context:
    """Return the content of "Is it right on new images?"."""
    return {
        "periods": list(reversed(periods))[:_MAX_JOBS],
        "live_answer": live.on_periods(periods),
        "live_limits": live.LIMITS,
        "live_chart": live.picture(periods) if len(periods) > 1 else "",
    }


def making(manifest: Manifest) -> Context:
    """Return the content of "Is the data sound?" and "How was it made?"."""
    checks = manifest.steps.check_data.checks
    return {
        "checks": checks,
        "checks_answer": text.on_checks([(each.passed, each.hard) for each in checks]),
        "facts": facts(manifest),
        "timings": timings(manifest),
        "settings": {name: setting(value) for name, value in flatten(manifest.config).items()},
        "packages": {name: version for name, version in manifest.packages.items() if version},
        "digests": digests(manifest),
    }
