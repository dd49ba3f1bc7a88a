"""Networks: named ones and the user's own; how they are built, compiled, saved and loaded."""

from nnbuild.config.schema import RunConfig, is_factory, require_names
from nnbuild.models.architectures import NETWORKS, Shape, build_network
from nnbuild.models.compile import compile_model, computing_in
from nnbuild.models.custom import build_user_model
from nnbuild.models.serialization import load_model, save_model, seeded
from nnbuild.runtime.tensorflow import keras

__all__ = ["NETWORKS", "build", "build_float32", "compile_model", "load_model", "save_model"]


def build(config: RunConfig, shape: Shape, classes: int) -> keras.Model:
    """Build the network of a configuration.

    Sets Keras's global seed to that of the configuration and clears its counters of layer names, so
    that the same configuration gives the same model in any process.

    Args:
        config: Resolved configuration.
        shape: Height and width of an image in pixels, and number of channels.
        classes: Number of logits.

    Returns:
        Uncompiled model from pixels to logits.

    Raises:
        ConfigError: The model's name is unknown, or its function cannot be imported.
        ContractError: The user's function does not return an uncompiled model.
    """
    require_names(config)
    keras.utils.clear_session()
    with seeded(config.seed), computing_in(config.training.dtype_policy or "float32"):
        if is_factory(config.model.name):
            return build_user_model(config.model.name, shape, classes)
        return build_network(config.model, shape, classes, config.seed)


def build_float32(model: keras.Model, config: RunConfig, shape: Shape, classes: int) -> keras.Model:
    """Return a trained network that computes in float32.

    Args:
        model: Trained model of the configuration.
        config: Resolved configuration.
        shape: Height and width of an image in pixels, and number of channels.
        classes: Number of logits.

    Returns:
        `model` itself if it was trained in float32, otherwise a compiled copy.
    """
    if config.training.dtype_policy in {None, "float32"}:
        return model
    training = config.training.model_copy(update={"dtype_policy": "float32"})
    copy = build(config.model_copy(update={"training": training}), shape, classes)
    copy.set_weights(model.get_weights())
    compile_model(copy, training, steps=int(model.optimizer.iterations) or 1)
    return copy
