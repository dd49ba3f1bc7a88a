"""Draw the metrics of a fit by epoch, with a line for each network of an ensemble."""

from markupsafe import Markup

from nnbuild.report import charts, text
from nnbuild.report.data import Curves, Points
from nnbuild.report.networks import Networks


def names_of_charts(curves: Curves) -> list[str]:
    """Return the metrics to draw, without `val_`; not a constant learning rate."""
    names = dict.fromkeys(each.removeprefix("val_") for each in curves)
    return [each for each in names if each != "learning_rate" or not text.on_rate(curves)]


def metric_chart(curves: Curves, name: str, networks: Networks, restored: int) -> Markup:
    """Draw a metric by epoch, on the training and the validation images.

    Args:
        curves: Curves of all networks, one after another.
        name: Name of the metric, one of `names_of_charts`.
        networks: Networks of the run.
        restored: Epoch whose weights were restored.
    """
    is_rate, title = name == "learning_rate", name.replace("_", " ")
    log = is_rate or name.endswith("loss")
    if networks.size > 1:
        return _chart_of_ensemble(curves, name, networks, log=log)
    series = _series(curves, name)
    return charts.lines(
        text.curve_title(title, series),
        series,
        restored=None if is_rate else restored,
        best=text.best_of(name, series.get("validation") or next(iter(series.values()))),
        log=log,
    )


def _chart_of_ensemble(curves: Curves, name: str, networks: Networks, *, log: bool) -> Markup:
    is_split = networks.each is not None
    series = [_series(each, name) for each in networks.split(curves)]
    named = {
        f"{kind} of network {number}" if is_split else f"{kind} of all networks": points
        for number, each in enumerate(series, start=1)
        for kind, points in each.items()
    }
    return charts.lines(
        text.curve_title(name.replace("_", " "), named),
        series[0],
        others=series[1:],
        joined=is_split,
        log=log,
        label="epoch" if is_split else "epoch, counted over all networks",
    )


def _series(curves: Curves, name: str) -> dict[str, Points]:
    if name == "learning_rate":
        return {"": curves[name]}
    both = {"training": curves.get(name), "validation": curves.get(f"val_{name}")}
    return {each: points for each, points in both.items() if points}
