"""Write the page that a run ends in."""

from nnbuild.report import render, standalone
from nnbuild.results import FittedModel, LoadedData, Reported
from nnbuild.schemas import FIXED, predictions
from nnbuild.steps.data import read_data
from nnbuild.steps.manifest import manifest_of
from nnbuild.steps.once import once, staged_table
from nnbuild.store.files import write_bytes
from nnbuild.store.run import Run
from nnbuild.store.tables import read_table

_SHOWN = ("history", "evaluation", "confusion", "calibration")


@once(Reported)
def write_report(run: Run, data: LoadedData) -> Reported:
    """Write `report.html` from what the run has by now."""
    tables = {name: read_table(staged_table(run, name), FIXED[name]) for name in _SHOWN}
    tables["predictions"] = read_table(staged_table(run, "predictions"), predictions(data.classes))
    page = render(manifest_of(run), tables, read_data(run, data).test.images)
    path = run.folder / "report.html"
    write_bytes(path, page.encode())
    return Reported(path=run.relative(path), files=run.digests("report.html"))


def curve_picture(run: Run, metric: str) -> str | None:
    """A metric by epoch, as an SVG that stands alone; None if the run has no such metric."""
    fitted = run.recall("fit_model", FittedModel)
    history = read_table(staged_table(run, "history"), FIXED["history"])
    return standalone.curve_picture(history, metric, fitted.weights_epoch if fitted else 0)


def confusion_picture(run: Run, data: LoadedData) -> str:
    """The confusion matrix on the test images, as an SVG that stands alone."""
    return standalone.confusion_picture(
        read_table(staged_table(run, "confusion"), FIXED["confusion"]), data.class_names
    )
