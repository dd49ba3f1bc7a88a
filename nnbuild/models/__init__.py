"""The networks: named ones, the user's own, and how they are built, compiled, written and read."""

from typing import Any

from nnbuild.config.schema import RunConfig, is_factory, require_names
from nnbuild.models.architectures import NETWORKS, Shape, build_network
from nnbuild.models.compile import compile_model, computing_in
from nnbuild.models.custom import build_user_model
from nnbuild.models.serialization import load_model, save_model, seeded
from nnbuild.runtime.tensorflow import keras

__all__ = ["NETWORKS", "build", "build_float32", "compile_model", "load_model", "save_model"]


def build(config: RunConfig, shape: Shape, classes: int) -> Any:
    """Build the config's network with the config's seed.

    Sets Keras's global seed and clears its counters of layer names, so that the same config gives the
    same model in any process.

    Args:
        config: resolved.
        shape: of an image: height and width in pixels, and channels.
        classes: how many logits there are.

    Returns:
        An uncompiled Keras model, pixels in, logits out.

    Raises:
        ConfigError: the model's name is not known or cannot be imported.
        ContractError: the function that was named returns something else.
    """
    require_names(config)
    keras.utils.clear_session()
    with seeded(config.seed), computing_in(config.training.precision or "float32"):
        if is_factory(config.model.name):
            return build_user_model(config.model.name, shape, classes)
        return build_network(config.model, shape, classes, config.seed)


def build_float32(model: Any, config: RunConfig, shape: Shape, classes: int) -> Any:
    """The config's network with the weights of a trained one, computing in float32 and compiled alike.

    Args:
        model: compiled and trained, of the config.
        config: resolved.
        shape: of an image: height and width in pixels, and channels.
        classes: how many logits there are.

    Returns:
        `model` itself if it was trained in float32.
    """
    if config.training.precision in {None, "float32"}:
        return model
    training = config.training.model_copy(update={"precision": "float32"})
    plain = build(config.model_copy(update={"training": training}), shape, classes)
    plain.set_weights(model.get_weights())
    compile_model(plain, training, steps=int(model.optimizer.iterations) or 1)
    return plain
