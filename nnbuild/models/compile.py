"""Compile a model with a loss on logits, and the optimizer and metrics of the settings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nnbuild.config.sections import WITH_BETAS, TrainingConfig
from nnbuild.models.backbone import require_backbone
from nnbuild.models.optimizers import Muon, learning_rate
from nnbuild.runtime.tensorflow import keras


@contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Set Keras's dtype policy for the layers that are created in a block.

    Args:
        policy: float32, mixed_bfloat16 or mixed_float16; the weights are always float32.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def with_scaled_loss(
    optimizer: keras.optimizers.Optimizer, policy: str
) -> keras.optimizers.Optimizer:
    """Return the optimizer with a scaled loss under mixed_float16.

    Small gradients would otherwise be 0 in float16.
    """
    if policy != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


_OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "muon": Muon,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
}

# The metrics of the settings; Keras has a class of each for sparse and for one-hot targets.
_METRICS: dict[str, Callable[[bool], str | keras.metrics.Metric]] = {
    "accuracy": lambda _: "accuracy",
    "crossentropy": lambda sparse: (
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="crossentropy")
        if sparse
        else keras.metrics.CategoricalCrossentropy(from_logits=True, name="crossentropy")
    ),
    "top_2_accuracy": lambda sparse: _top_k(2, sparse=sparse),
    "top_5_accuracy": lambda sparse: _top_k(5, sparse=sparse),
}


def _top_k(k: int, *, sparse: bool) -> keras.metrics.Metric:
    kind = (
        keras.metrics.SparseTopKCategoricalAccuracy
        if sparse
        else keras.metrics.TopKCategoricalAccuracy
    )
    return kind(k=k, name=f"top_{k}_accuracy")


def _optimizer(training: TrainingConfig, steps: int) -> keras.optimizers.Optimizer:
    options: dict[str, float | bool] = {}
    if training.optimizer in WITH_BETAS:
        betas = {"beta_1": training.beta_1, "beta_2": training.beta_2}
        options |= {name: value for name, value in betas.items() if value is not None}
    if training.ema_decay is not None:
        options |= {"use_ema": True, "ema_momentum": _momentum(training.ema_decay, steps)}
    return _OPTIMIZERS[str(training.optimizer)](learning_rate(training, steps), **options)


def _momentum(momentum: float, steps: int) -> float:
    """Limit the momentum of the weights' average to a tenth of the fit.

    The average over a whole short fit would still be close to the initial weights.
    """
    return min(momentum, max(0.0, 1 - 10 / max(steps, 1)))


def loss_of(training: TrainingConfig) -> keras.losses.Loss:
    """Return the cross-entropy on logits for the target form."""
    sparse = training.label_encoding == "sparse"
    loss = (
        keras.losses.SparseCategoricalCrossentropy
        if sparse
        else keras.losses.CategoricalCrossentropy
    )
    return loss(from_logits=True)


def metrics_of(training: TrainingConfig) -> list[str | keras.metrics.Metric]:
    """Return the metrics of the settings, for their target form."""
    return [_METRICS[name](training.label_encoding == "sparse") for name in training.metrics]


def compile_model(model: keras.Model, training: TrainingConfig, *, steps: int) -> None:
    """Compile a model with a loss on logits; modifies `model` in place.

    Args:
        model: Uncompiled model that outputs logits.
        training: Resolved settings.
        steps: Number of steps of the whole fit, for the learning rate schedules.

    Raises:
        ConfigError: There is no backbone to freeze.
    """
    require_backbone(model, training.freeze_epochs)
    model.compile(
        optimizer=with_scaled_loss(_optimizer(training, steps), str(training.dtype_policy)),
        loss=loss_of(training),
        metrics=metrics_of(training),
        auto_scale_loss=False,  # `with_scaled_loss` does it
    )
    model.optimizer.build(model.trainable_variables)
