"""Render the report of a run as one self-contained HTML file, and its charts as SVG files."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from markupsafe import Markup
from numpy.typing import NDArray

from nnbuild.data.dataset_reader import read_test_split
from nnbuild.errors import DataError, StoreError, one_line
from nnbuild.report import data, examples, names, sections, text
from nnbuild.report.charts import heat_map
from nnbuild.report.metric_charts import metric_chart, names_of_charts
from nnbuild.report.networks import Networks
from nnbuild.report.sections import Tables
from nnbuild.store.analysis import drift_by_job, live_periods
from nnbuild.store.filesystem import write_bytes, write_json
from nnbuild.store.manifests import FileEntry, Manifest
from nnbuild.store.outputs import write_output
from nnbuild.store.store import Store

_TABLES = ("history", "evaluation", "confusion", "calibration", "predictions")
_SCALE = 2  # pixels per unit of a chart in a file of its own


def render(
    manifest: Manifest,
    tables: Tables,
    images: NDArray[np.uint8] | None = None,
    drift: Sequence[dict[str, Any]] = (),
    periods: Sequence[dict[str, Any]] = (),
) -> str:
    """Render the report of a run; equal arguments give equal text.

    Args:
        manifest: Manifest of a run that succeeded.
        tables: Its tables `history`, `evaluation`, `confusion`, `calibration` and `predictions`.
        images: Test images by `example_id`, uint8, shape (n, height, width, channels); without
            them the page shows none.
        drift: Drift of the jobs scored with its model, the result of
            `nnbuild.store.analysis.drift_by_job`.
        periods: Live accuracy of the run, the result of `nnbuild.store.analysis.live_periods`.

    Returns:
        Self-contained HTML, without scripts or network access.

    Raises:
        DataError: The images are not those of the predictions.
    """
    class_names = [str(name) for name in manifest.steps.load_data.class_names]
    if images is not None:
        examples.require_matching(images, tables["predictions"])
    return (
        environment()
        .get_template("page.html")
        .render(
            {"short": names.shorten(class_names)}
            | sections.opening(manifest, tables)
            | sections.gate(manifest, tables)
            | sections.loss(manifest, tables)
            | sections.errors(tables, class_names)
            | sections.slices(tables)
            | sections.trust(tables)
            | sections.shown(tables, images, class_names)
            | sections.drifted(drift)
            | sections.live_accuracy(periods)
            | sections.making(manifest)
        )
    )


def environment() -> jinja2.Environment:
    """Return the Jinja environment with the templates of the pages and their filters."""
    result = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_sanitized,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters |= {
        "percent": text.percent,
        "chance": text.chance,
        "isolate": names.isolate,
        "cell": text.cell,
        "slice_name": text.slice_name,
    }
    return result


def overview_page(
    title: str,
    sentences: Sequence[str],
    pictures: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Render a page about several runs.

    Args:
        title: Heading of the page.
        sentences: Sentences below it.
        pictures: Charts, each with `title` and `picture`.
        tables: Rows of each table by its heading; empty tables are omitted.
    """
    filled = {name: rows for name, rows in tables.items() if rows}
    return (
        environment()
        .get_template("across.html")
        .render(title=title, sentences=sentences, pictures=pictures, tables=filled)
    )


def _sanitized(value: object) -> object:
    """Remove control characters from a text, which Jinja then escapes; leave markup as it is."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return names.sanitize(str(value)) if is_text else value


def rebuild(store: Store, run_id: str) -> Path:
    """Write the `report.html` of a committed run again, and its new digest to the manifest.

    The page also shows the drift of the jobs scored since with its model, and its live accuracy as
    `nnbuild live` last computed it. It shows no images if the dataset is no longer in the store.

    Returns:
        Path of the page.

    Raises:
        StoreError: There is no such run, it failed, or its tables are missing or damaged.
    """
    manifest = store.manifest(run_id)
    page = _page(store, manifest, run_id).encode()
    path = store.root / "runs" / run_id / "report.html"
    (write_bytes if store.is_remote else write_output)(path, page)
    _record(manifest, path, page)
    return path


def _page(store: Store, manifest: Manifest, run_id: str) -> str:
    status = manifest.row.status
    if status != "succeeded":
        raise StoreError(
            f"run {run_id} has status {status!r}, expected 'succeeded'; "
            f"see `nnbuild history {run_id}`"
        )
    needed = (*_TABLES, "slices") if manifest.settings.dataset.keep else _TABLES
    for name in needed:
        if not store.partition(name, run_id).is_dir():
            raise StoreError(
                f"run {run_id} has no table {name}, which the report needs; "
                "restore it from a backup"
            )
    tables = {name: store.read_table(name, run_id).drop_columns("run_id") for name in needed}
    try:
        drift, periods = drift_by_job(store, run_id), live_periods(store, run_id)
        return render(manifest, tables, _test_images(store, manifest), drift, periods)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise StoreError(
            f"the tables of run {run_id} do not match its manifest ({type(error).__name__}: "
            f"{one_line(error)}); restore them from a backup"
        ) from error


def _test_images(store: Store, manifest: Manifest) -> NDArray[np.uint8] | None:
    data = manifest.steps.load_data
    if not store.has_dataset(data.name, data.digest):
        return None
    try:
        return read_test_split(store.local_dataset(data.name, data.digest)).images
    except DataError as error:
        raise StoreError(f"cannot read the test images: {error}") from error


def _record(manifest: Manifest, path: Path, page: bytes) -> None:
    """Update the digest of the page in the manifest, which lists every file of the run."""
    entry = FileEntry(sha256=hashlib.sha256(page).hexdigest(), bytes=len(page))
    name = f"runs/{manifest.run_id}/{path.name}"
    if manifest.files.get(name) != entry:
        manifest.files[name] = entry
        write_json(path.parent / "manifest.json", manifest.to_json())


def curve_picture(history: pa.Table, metric: str, networks: Networks, restored: int) -> str | None:
    """Draw a metric by epoch, on the training and the validation images.

    Args:
        history: The `history` table.
        metric: Name of the metric in Keras, without `val_`.
        networks: Networks of the run.
        restored: Epoch whose weights were restored.

    Returns:
        The SVG; None if the history has no such metric.
    """
    curves = data.curves(history)
    if metric not in names_of_charts(curves):
        return None
    return standalone(metric_chart(curves, metric, networks, restored))


def confusion_picture(confusion: pa.Table, class_names: Sequence[str]) -> str:
    """Draw the confusion matrix as a heat map.

    Args:
        confusion: The `confusion` table.
        class_names: Names of all classes.
    """
    errors = data.errors(confusion, list(class_names))
    title = f"Confusion matrix: {errors.incorrect:,} of {errors.images:,} images incorrect"
    shown = errors.shown
    counts = errors.counts[np.ix_(shown, shown)].tolist()
    totals = errors.counts.sum(axis=1)[shown].tolist()
    return standalone(
        heat_map(
            title,
            counts,
            [class_names[each] for each in shown],
            totals,
            names.shorten(class_names),
        )
    )


def standalone(picture: Markup) -> str:
    """Return a chart with its own size, on white, with the colours of the page."""
    text = str(picture)
    box = text.split('viewBox="', 1)[1].split('"', 1)[0]
    width, height = (float(each) for each in box.split()[2:])
    size = (
        'xmlns="http://www.w3.org/2000/svg" '
        f'width="{_SCALE * width:.0f}" height="{_SCALE * height:.0f}"'
    )
    opening, inside = text.split(">", 1)
    opening = opening.replace("<svg", f"<svg {size}", 1)
    return (
        f'{opening}><style>{_style()}</style><rect width="100%" height="100%" fill="#fff"/>{inside}'
    )


def _style() -> str:
    """Return the style of charts from the style sheet of the page, in light colours."""
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    colours = css[: css.index("}") + 1]
    of_charts = next(each for each in css.split("\n\n") if each.startswith("svg.chart"))
    return f"{colours} svg {{ font-family: system-ui, sans-serif; }} {of_charts.split('}', 1)[1]}"
