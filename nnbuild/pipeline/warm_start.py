"""Start a fit from the weights of the champion instead of random ones."""

from typing import Any, NamedTuple

from nnbuild.errors import ConfigError
from nnbuild.models import load_model
from nnbuild.pipeline.days import run_of_day
from nnbuild.scoring.models import model_of_run
from nnbuild.store import Run, Store, champion
from nnbuild.store.manifests import Manifest
from nnbuild.store.step_results import LoadedData


class Start(NamedTuple):
    """The weights that a fit starts from.

    Attributes:
        run_id: ID of the run whose model has them.
        digest: SHA-256 of that model's file.
        weights: The weights, in Keras's order.
    """

    run_id: str
    digest: str
    weights: list[Any]


def start_of(run: Run, data: LoadedData) -> Start | None:
    """Return the weights that the fit of a run starts from; None for those of its seed.

    A run that repeats one of a past day starts from the same model as that run.

    Args:
        run: Run in staging.
        data: Result of `load_data`.

    Raises:
        ConfigError: The champion is another network, or has other classes or images.
        ContractError: The champion's file was changed or is missing.
    """
    manifest = _starting_run(run, data)
    if manifest is None:
        return None
    _require_same_kind(run, data, manifest)
    model = model_of_run(Store(run.store), manifest, "keras")
    path = run.folder / "model" / "start.keras"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.content)
    network = load_model(path, model.digest, model_name=model.factory, compiled=False)
    path.unlink()
    return Start(manifest.run_id, model.digest, network.get_weights())


def _starting_run(run: Run, data: LoadedData) -> Manifest | None:
    if run.config.training.start is None:
        return None
    store, dataset = Store(run.store), run.config.dataset
    if dataset.as_of is not None and (again := run_of_day(store, dataset, dataset.as_of)):
        run_id = again.steps.build_model.start
    else:
        run_id = champion.current(store, data.name)
    return None if run_id is None else store.manifest(run_id)


def _require_same_kind(run: Run, data: LoadedData, manifest: Manifest) -> None:
    """Refuse a model of another network, or for other classes or images."""
    theirs = manifest.steps.load_data
    for what, own, other in (
        ("the network", run.config.model.name, manifest.row.model),
        ("images of height, width, channels", data.image_shape, theirs.image_shape),
        ("the classes", data.class_names, theirs.class_names),
    ):
        if own != other:
            raise ConfigError(
                f"training.start is 'champion', but champion {manifest.run_id} has {what} "
                f"{_short(other)}, and this run {_short(own)}; remove training.start for this run"
            )


def require_same_weights(start: Start, shapes: list[tuple[int, ...]]) -> None:
    """Refuse weights whose shapes are not those of the network.

    Args:
        start: The weights.
        shapes: Shapes of the weights of the network, in Keras's order.

    Raises:
        ConfigError: The shapes differ.
    """
    theirs = [tuple(each.shape) for each in start.weights]
    if theirs != shapes:
        raise ConfigError(
            f"training.start is 'champion', but champion {start.run_id} has {len(theirs)} weights "
            f"of other shapes than the {len(shapes)} of this network; remove training.start for "
            "this run"
        )


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
