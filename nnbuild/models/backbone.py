"""The backbone of a network: models inside it, which can be frozen while the head is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from nnbuild.errors import ConfigError
from nnbuild.runtime.tensorflow import keras


def require_backbone(model: keras.Model, epochs: int) -> None:
    """Refuse to freeze a network without a model inside it.

    Args:
        model: Network of the user's function.
        epochs: Number of epochs to freeze it for.

    Raises:
        ConfigError: No layer of the network is a model with weights to train, or all weights are
            in such layers.
    """
    if not epochs:
        return
    if not any(each.trainable_variables for each in _inner_models(model)):
        raise ConfigError(
            f"training.freeze_epochs {epochs} has no effect on model {model.name!r}: none of its "
            "layers is a model with weights to train; call the backbone as a layer, "
            "features = backbone(pixels), or remove freeze_epochs"
        )
    with frozen_backbone(model):
        if not model.trainable_variables:
            raise ConfigError(
                f"training.freeze_epochs {epochs} leaves nothing to train: all weights of model "
                f"{model.name!r} are in the model inside it; add the head outside of the backbone, "
                "or remove freeze_epochs"
            )


@contextmanager
def frozen_backbone(model: keras.Model) -> Iterator[None]:
    """Make the models inside a network not trainable while a step is traced.

    Their batch normalisations then use the stored statistics, as in inference. Layers that the
    user's function has frozen stay so afterwards.

    Args:
        model: Network, modified in place while the block runs.
    """
    inner = _inner_models(model)
    layers = [layer for each in inner for layer in each._flatten_layers()]  # noqa: SLF001
    before = [(layer, layer.trainable) for layer in layers]
    for each in inner:
        each.trainable = False
    try:
        yield
    finally:
        for layer, trainable in before:  # outer layers first: setting one sets those inside
            layer.trainable = trainable


def _inner_models(model: keras.Model) -> list[keras.Model]:
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]
