"""Fill the page: every figure comes from the manifest or a table, every picture is inside the file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from nnbuild.report import examples, formats, sections
from nnbuild.report.matrix import shortened
from nnbuild.report.sections import Manifest, Tables
from nnbuild.runtime.text import sanitize


def render(
    manifest: Manifest,
    tables: Tables,
    images: NDArray[np.uint8] | None = None,
    drift: Sequence[dict[str, Any]] = (),
) -> str:
    """The report of a run. The same arguments give the same text, before and after the run is committed.

    Args:
        manifest: of a run that succeeded.
        tables: its `history`, `evaluation`, `confusion`, `calibration` and `predictions`, as Arrow tables.
        images: uint8, shape (n, height, width, channels), the test images, by `example_id`; without them the page
            shows none.
        drift: how far off what its model scored has been, as `nnbuild.across.drift_by_job` gives it.

    Returns:
        HTML, complete in itself: no script, and nothing from the network.

    Raises:
        DataError: the images are not those of the predictions.
    """
    names = [str(name) for name in manifest["steps"]["load_data"]["class_names"]]
    if images is not None:
        examples.require_matching(images, tables["predictions"])
    return (
        environment()
        .get_template("page.html")
        .render(
            sections.opening(manifest, tables)
            | sections.gate(manifest, tables)
            | sections.loss(manifest, tables)
            | sections.errors(tables, names)
            | sections.trust(tables)
            | sections.shown(tables, images, names)
            | sections.drifted(drift)
            | sections.making(manifest)
        )
    )


def environment() -> jinja2.Environment:
    """Where the pages' templates are, and the filters that they use."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": formats.percent,
        "chance": formats.chance,
        "short": shortened,
        "cell": formats.cell,
    }
    return found


def _shown(value: Any) -> Any:
    """Make a text safe to show; it is escaped after that. Markup is made by templates and `svg` alone."""
    return sanitize(value) if isinstance(value, str) and not isinstance(value, Markup) else value
