"""Describe how a run was made, from its manifest."""

from collections.abc import Iterator
from typing import Any

from nnbuild.engines import describe_engine, engine_of_run
from nnbuild.report.names import isolate
from nnbuild.report.networks import networks_in
from nnbuild.store.manifests import Manifest
from nnbuild.store.step_results import Reported

_REPORT = Reported.step  # this step writes the page, which cannot contain its own duration


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
    networks = networks_in(manifest)
    yield (
        "weights",
        f"of epoch {fitted.weights_epoch} of {fitted.epochs}"
        if networks.size == 1
        else f"of {networks.epochs}",
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
