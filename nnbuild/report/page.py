"""Fill the page: every figure comes from the manifest or a table, every picture is inside the file."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from nnbuild.history import history_of_table
from nnbuild.report import charts

_SHOWN_CLASSES = 20
_SAMPLES, _WORST = 64, 16
_HEADLINE = {
    "accuracy": "accuracy",
    "loss": "loss, nats",
    "top_2_accuracy": "in the first two",
    "brier_score": "Brier score",
    "expected_calibration_error": "calibration error",
    "macro_f1": "macro F1",
}

Manifest = Mapping[str, Any]
Tables = Mapping[str, Any]


def render(manifest: Manifest, tables: Tables, images: NDArray[np.uint8] | None = None) -> str:
    """The report of a run.

    Args:
        manifest: of the run.
        tables: its `history`, `evaluation`, `confusion`, `calibration` and `predictions`, as Arrow tables.
        images: uint8, shape (n, height, width, channels), the test images in the order of the predictions; without
            them the page shows none.

    Returns:
        HTML, complete in itself: no script, and nothing from the network.
    """
    steps, config = manifest["steps"], manifest["config"]
    names = steps["load_data"]["class_names"]
    overall, by_class = _figures(tables["evaluation"], names)
    counts = _confusion(tables["confusion"], len(names))
    shown = _most_wrong(counts)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    wanted = config["dataset"]["name"]
    return template.render(
        manifest=manifest,
        row=manifest["row"],
        wanted=wanted,
        fallback=config["dataset"]["fallback"] == manifest["row"]["dataset"] != wanted,
        headline=[(title, f"{overall[name]:.4f}") for name, title in _HEADLINE.items()],
        curves=_curves(tables["history"], steps["fit_model"]["weights_epoch"]),
        confusion=Markup(  # noqa: S704  (made by `charts`, which escapes its texts)
            charts.heat_map("Confusion matrix", counts[np.ix_(shown, shown)].tolist(), [names[each] for each in shown])
        ),
        shown=len(shown),
        classes=len(names),
        left_out=len(shown) < len(names),
        by_class=[by_class[each] for each in shown],
        reliability=_reliability(tables["calibration"]),
        confidence=_confidence(tables["predictions"]),
        samples=_samples(tables["predictions"], images, names),
        worst=_worst(tables["predictions"], images, names),
        checks=steps["check_data"]["checks"],
        facts=_facts(manifest),
    )


def _figures(table: Any, names: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    rows = table.to_pylist()
    by_class: list[dict[str, Any]] = [{"name": name} for name in names]
    for row in rows:
        if row["label"] is not None:
            by_class[row["label"]][row["metric"]] = row["value"]
    return {row["metric"]: row["value"] for row in rows if row["label"] is None}, by_class


def _confusion(table: Any, classes: int) -> NDArray[np.int64]:
    counts = np.zeros((classes, classes), np.int64)
    counts[table["label"].to_numpy(), table["predicted"].to_numpy()] = table["count"].to_numpy()
    return counts


def _most_wrong(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    errors = counts.sum(axis=1) - np.diag(counts)
    return np.sort(np.argsort(-errors, kind="stable")[:_SHOWN_CLASSES])


def _curves(table: Any, best: int) -> list[tuple[str, Markup]]:
    """One picture for each metric, training and validation together."""
    epochs: dict[str, list[tuple[float, float]]] = {}
    for row in table.to_pylist():
        epochs.setdefault(row["metric"], []).append((row["epoch"], row["value"]))
    trained = [name for name in history_of_table(table) if not name.startswith("val_")]
    pictures = []
    for name in trained:
        series = {"training": epochs[name]} if f"val_{name}" in epochs else {name: epochs[name]}
        if f"val_{name}" in epochs:
            series["validation"] = epochs[f"val_{name}"]
        title = f"{name.replace('_', ' ')} by epoch"
        picture = charts.lines(title, series, ("epoch", ""), best if name == "loss" else None)
        pictures.append((f"{title}; dashed: the epoch whose weights were kept" if name == "loss" else title, picture))
    return [(title, Markup(picture)) for title, picture in pictures]  # noqa: S704  (escaped by `charts`)


def _reliability(table: Any) -> Markup:
    rows = table.to_pylist()
    picture = charts.bars(
        "Accuracy and mean confidence by confidence",
        [row["accuracy"] or 0.0 for row in rows],
        ("confidence", ""),
        [row["mean_confidence"] for row in rows],
    )
    return Markup(picture)  # noqa: S704


def _confidence(table: Any) -> Markup:
    counts, _ = np.histogram(table["confidence"].to_numpy(), bins=20, range=(0, 1))
    shares = (counts / max(counts.sum(), 1)).tolist()
    return Markup(charts.bars("Share of the images at each confidence", shares, ("confidence", "")))  # noqa: S704


def _samples(table: Any, images: NDArray[np.uint8] | None, names: list[str]) -> list[dict[str, Any]]:
    if images is None:
        return []
    drawn = np.random.default_rng(0).permutation(len(images))[:_SAMPLES]
    return [_picture(table, images, names, int(row)) for row in np.sort(drawn)]


def _worst(table: Any, images: NDArray[np.uint8] | None, names: list[str]) -> list[dict[str, Any]]:
    """The errors with the least probability of the true class."""
    labels, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    wrong = np.flatnonzero(labels != predicted)
    if images is None or len(wrong) == 0:
        return []
    of_label = np.array([table[f"prob_{labels[row]}"][int(row)].as_py() for row in wrong])
    return [_picture(table, images, names, int(row)) for row in wrong[np.argsort(of_label, kind="stable")][:_WORST]]


def _picture(table: Any, images: NDArray[np.uint8], names: list[str], row: int) -> dict[str, Any]:
    found = {name: table[name][row].as_py() for name in ("label", "predicted", "confidence")}
    label, predicted = names[found["label"]], names[found["predicted"]]
    sure = f"{100 * found['confidence']:.0f} %"
    miss = label != predicted
    return {
        "image": _png(images[row]),
        "miss": miss,
        "alt": f"Test image {row}, a {label}, taken for {predicted}",
        "caption": f"{label} → {predicted}, {sure}" if miss else f"{predicted}, {sure}",
    }


def _png(image: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    data, fitted = manifest["steps"]["load_data"], manifest["steps"]["fit_model"]
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in manifest["seconds"].items())
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items() if version)
    return [
        ("dataset", f"{data['train']:,} training and {data['test']:,} test images from {data['source']}"),
        ("dataset digest", data["digest"]),
        ("seed", str(manifest["config"]["seed"])),
        ("network", f"{manifest['row']['model']}, {manifest['steps']['build_model']['parameters']:,} parameters"),
        ("epochs", f"{fitted['epochs']}, with the weights of epoch {fitted['weights_epoch']}"),
        *(("resumed", remark) for remark in fitted["remarks"]),
        ("training", ", ".join(f"{name} {value}" for name, value in manifest["config"]["training"].items())),
        ("model file", fitted["files"]["model/model.keras"]),
        ("seconds", seconds),
        ("code", manifest["code_version"]),
        ("packages", packages),
        ("machine", f"{manifest['machine']['system']}, Python {manifest['machine']['python']}"),
        ("started", manifest["row"]["started_at"]),
        ("config digest", manifest["config_digest"]),
    ]
