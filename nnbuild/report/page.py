"""Fill the page: every figure comes from the manifest or a table, every picture is inside the file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from nnbuild.report import charts, examples, figures, words
from nnbuild.report.facts import digests, facts, timings
from nnbuild.report.matrix import heat_map, shortened

_HEADLINE = {  # metric: (title, whether more is better, whether it is a share)
    "accuracy": ("accuracy", True, True),
    "loss": ("loss, nats", False, False),
    "expected_calibration_error": ("calibration error", False, False),
    "top_2_accuracy": ("in the first two", True, True),
    "brier_score": ("Brier score", False, False),
    "macro_f1": ("macro F1", True, False),
}
_SHORT_NAME = 3

Manifest = Mapping[str, Any]
Tables = Mapping[str, Any]
Context = dict[str, Any]


@dataclass(frozen=True)
class Champion:
    """The run to beat.

    Attributes:
        run_id: its id.
        metrics: its figures over all classes on the same test set, as in the evaluation table.
        verdict: what a test of the difference says, in a sentence; empty if there was none.
    """

    run_id: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""


def render(
    manifest: Manifest,
    tables: Tables,
    images: NDArray[np.uint8] | None = None,
    champion: Champion | None = None,
) -> str:
    """The report of a run. The same arguments give the same text, before and after the run is committed.

    Args:
        manifest: of a run that succeeded.
        tables: its `history`, `evaluation`, `confusion`, `calibration` and `predictions`, as Arrow tables.
        images: uint8, shape (n, height, width, channels), the test images, by `example_id`; without them the page
            shows none.
        champion: the run to show this one beside; if not given, the one that the gate held it against.

    Returns:
        HTML, complete in itself: no script, and nothing from the network.

    Raises:
        DataError: the images are not those of the predictions.
    """
    champion = champion or _champion_of(manifest)
    names = [str(name) for name in manifest["steps"]["load_data"]["class_names"]]
    checks = manifest["steps"]["check_data"]["checks"]
    if images is not None:
        examples.require_matching(images, tables["predictions"])
    return (
        environment()
        .get_template("page.html")
        .render(
            _opening(manifest, tables, champion)
            | _loss(manifest, tables)
            | _errors(tables, names)
            | _trust(tables)
            | _images(tables, images, names)
            | {
                "checks": checks,
                "checks_answer": words.on_checks([(each["passed"], each["hard"]) for each in checks]),
                "facts": facts(manifest),
                "timings": timings(manifest),
                "settings": {
                    name: words.setting(value) for name, value in figures.flattened(manifest["config"]).items()
                },
                "packages": {name: version for name, version in manifest["packages"].items() if version},
                "digests": digests(manifest),
            }
        )
    )


def _champion_of(manifest: Manifest) -> Champion | None:
    decided = manifest["steps"].get("decide")
    if not decided or decided["champion"] is None:
        return None
    verdict = f"{'Promoted' if decided['promote'] else 'Not promoted'}: {decided['reason']}."
    return Champion(decided["champion"], decided["champion_metrics"], verdict)


def environment() -> jinja2.Environment:
    """Where the pages' templates are, and the filters that they use."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": words.percent, "chance": words.chance, "short": shortened}
    return found


def _opening(manifest: Manifest, tables: Tables, champion: Champion | None) -> Context:
    row, config = manifest["row"], manifest["config"]
    found = figures.overall(tables["evaluation"])
    theirs = champion.metrics if champion else {}
    images = len(tables["predictions"])
    wanted = config["dataset"]["name"]
    accuracy, begun = found.get("accuracy"), datetime.fromisoformat(row["started_at"])
    return {
        "run_id": manifest["run_id"],
        "model": row["model"],
        "dataset": row["dataset"],
        "wanted": wanted,
        "fallback": config["dataset"]["fallback"] == row["dataset"] != wanted,
        "started": f"{begun.day} {begun:%B %Y, %H:%M} UTC",
        "data": manifest["steps"]["load_data"],
        "epochs": row["epochs"],
        "images": images,
        "accuracy": accuracy,
        "interval": None if accuracy is None else words.interval(accuracy, images),
        "headline": [_figure(name, found.get(name), theirs.get(name)) for name in _HEADLINE],
        "champion": champion,
        "champion_answer": words.on_champion(found, theirs) if champion else "",
    }


def _figure(metric: str, mine: float | None, theirs: float | None) -> Context:
    title, more_is_better, is_share = _HEADLINE[metric]
    told = [None if each is None else words.percent(each) if is_share else f"{each:.4f}" for each in (mine, theirs)]
    better = None if mine is None or theirs is None or mine == theirs else (mine > theirs) == more_is_better
    return {"title": title, "value": told[0] or "–", "champion": told[1], "better": better}


def _loss(manifest: Manifest, tables: Tables) -> Context:
    curves, kept = figures.curves(tables["history"]), manifest["steps"]["fit_model"]["weights_epoch"]
    pictures = []
    for name in dict.fromkeys(each.removeprefix("val_") for each in curves):
        rate = name == "learning_rate"
        if rate and words.on_rate(curves):
            continue
        both = {"training": curves.get(name), "validation": curves.get(f"val_{name}")}
        series = {each: points for each, points in both.items() if points}
        title = name.replace("_", " ")
        picture = charts.lines(
            words.curve_title(title, series if not rate else {title: curves[name]}),
            series if not rate else {title: curves[name]},
            kept=None if rate else kept,
            best=words.best_of(name, series.get("validation") or series["training"]),
            log=rate or name.endswith("loss"),
        )
        pictures.append({"title": title, "picture": picture})
    return {
        "loss_answer": words.on_loss(curves, kept),
        "rate_answer": words.on_rate(curves),
        "curves": pictures,
        "kept": kept,
    }


def _errors(tables: Tables, names: list[str]) -> Context:
    found, by_class = figures.errors(tables["confusion"], names), figures.by_class(tables["evaluation"])
    shown = found.shown
    title = f"Confusion matrix of {len(shown)} classes: {found.wrong:,} of {found.images:,} images wrong"
    least = {
        metric: min((each.get(metric, 1.0) for each in by_class.values()), default=None)
        for metric in ("precision", "recall", "f1")
    }
    return {
        "errors_answer": words.on_errors(found, names, by_class),
        "confusion": heat_map(
            title,
            found.counts[np.ix_(shown, shown)].tolist(),
            [names[each] for each in shown],
            found.counts.sum(axis=1)[shown].tolist(),
        ),
        "shown": len(shown),
        "classes": len(names),
        "by_class": [{"name": names[each], **by_class.get(each, {})} for each in shown],
        "least": least,
        "most": found.most,
    }


def _trust(tables: Tables) -> Context:
    right, wrong = figures.confidences(tables["predictions"])
    mean = float(tables["predictions"]["confidence"].to_numpy().mean()) if len(tables["predictions"]) else 0.0
    error = figures.overall(tables["evaluation"]).get("expected_calibration_error")
    return {
        "trust_answer": words.on_trust(right, wrong, mean, error),
        "diagrams": [
            {"title": title, "picture": charts.reliability(f"Reliability diagram, {title}", each.bins)}
            for each in figures.diagrams(tables["calibration"])
            if (title := words.diagram_title(each))
        ],
        "confidence": charts.histogram(words.histogram_title(right, wrong), right, wrong),
    }


def _images(tables: Tables, images: NDArray[np.uint8] | None, names: list[str]) -> Context:
    if images is None:
        return {"samples": [], "worst": [], "pixelated": "", "narrow": False}
    return {
        "samples": examples.samples(tables["predictions"], images, names),
        "worst": examples.worst(tables["predictions"], images, names),
        "pixelated": Markup(' class="pixels"') if examples.pixelated(images) else "",
        "narrow": max(map(len, names)) <= _SHORT_NAME,
    }
