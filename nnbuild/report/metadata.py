"""How a run was made, from its manifest alone, and from nothing there that a commit adds or changes."""

from collections.abc import Iterator, Mapping
from typing import Any

from nnbuild.engines import describe_engine, engine_of_run
from nnbuild.store.step_results import Reported

_AFTER = Reported.step  # the page is written in this step, and cannot know how long it takes

Manifest = Mapping[str, Any]


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Name and value, as a reader wants them."""
    return list(_facts(manifest))


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    steps, machine, training = (
        manifest["steps"],
        manifest["machine"],
        manifest["config"]["training"],
    )
    data, fitted = steps["load_data"], steps["fit_model"]
    height, width, channels = data["image_shape"]
    yield "run", manifest["run_id"]
    yield "started", manifest["row"]["started_at"]
    if manifest["flow_run_id"]:
        yield "Prefect flow run", manifest["flow_run_id"]
    yield "data from", data["source"]
    yield (
        "images",
        f"{data['train']:,} to train on, {data['test']:,} to test on; {height} × {width} × {channels}",
    )
    own = data.get("validation", 0)
    drawn = f"{100 * training['validation_fraction']:g} % of the training images, drawn by the seed"
    yield "validation", f"{own:,} images of the data's own split" if own else drawn
    yield "seed", str(manifest["config"]["seed"])
    yield (
        "network",
        f"{manifest['row']['model']}, {steps['build_model']['parameters']:,} parameters",
    )
    yield "weights", f"of epoch {fitted['weights_epoch']} of {fitted['epochs']}"
    yield "scoring", describe_engine(*engine_of_run(manifest))
    for remark in fitted["remarks"]:
        yield "resumed", remark
    yield "code", manifest["code_version"]
    yield (
        "machine",
        f"{machine['system']}, {machine['processors']} processors, Python {machine['python']}",
    )


def timings(manifest: Manifest) -> list[dict[str, Any]]:
    """Each step's seconds in the order of the recipe, and their share of the longest, 0 to 1."""
    done = {name: seconds for name, seconds in manifest["seconds"].items() if name != _AFTER}
    order = {name: place for place, name in enumerate(manifest["steps"])}
    longest = max(done.values(), default=0.0) or 1.0
    return [
        {"name": name.replace("_", " "), "seconds": done[name], "share": done[name] / longest}
        for name in sorted(done, key=lambda each: (order.get(each, len(order)), each))
    ]


def digests(manifest: Manifest) -> dict[str, str]:
    """sha256 by what it is of: the dataset, the config, and each file that a step made."""
    found = {
        "dataset": manifest["steps"]["load_data"]["digest"],
        "config": manifest["config_digest"],
    }
    for name, step in manifest["steps"].items():
        if name != _AFTER:
            found |= step["files"]
    return found
