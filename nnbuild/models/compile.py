"""Compile: the loss takes logits, the optimizer and the metrics come from the config."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nnbuild.config.sections import WITH_BETAS, TrainingConfig
from nnbuild.models.lr_schedules import learning_rate
from nnbuild.models.muon import Muon
from nnbuild.runtime.tensorflow import keras


@contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Layers that are made here compute in a policy of Keras, unless they name their own dtype.

    Args:
        policy: float32, mixed_bfloat16 or mixed_float16; under the last two the weights stay float32.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def with_scaled_loss(optimizer: Any, policy: str) -> Any:
    """The optimizer, which under mixed_float16 scales the loss: small gradients would be 0 in float16."""
    return (
        keras.optimizers.LossScaleOptimizer(optimizer) if policy == "mixed_float16" else optimizer
    )


_OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "muon": Muon,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
}

# The config names a metric once; the target form decides which of Keras's classes it is.
_METRICS: dict[str, Callable[[bool], Any]] = {
    "accuracy": lambda _: "accuracy",
    "crossentropy": lambda sparse: (
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="crossentropy")
        if sparse
        else keras.metrics.CategoricalCrossentropy(from_logits=True, name="crossentropy")
    ),
    "top_2_accuracy": lambda sparse: _top_k(2, sparse=sparse),
    "top_5_accuracy": lambda sparse: _top_k(5, sparse=sparse),
}


def _top_k(k: int, *, sparse: bool) -> Any:
    kind = (
        keras.metrics.SparseTopKCategoricalAccuracy
        if sparse
        else keras.metrics.TopKCategoricalAccuracy
    )
    return kind(k=k, name=f"top_{k}_accuracy")


def _optimizer(training: TrainingConfig, steps: int) -> Any:
    given = (
        {"beta_1": training.beta_1, "beta_2": training.beta_2}
        if training.optimizer in WITH_BETAS
        else {}
    )
    betas = {name: value for name, value in given.items() if value is not None}
    average = (
        {}
        if training.ema is None
        else {"use_ema": True, "ema_momentum": _momentum(training.ema, steps)}
    )
    return _OPTIMIZERS[str(training.optimizer)](learning_rate(training, steps), **betas, **average)


def _momentum(wanted: float, steps: int) -> float:
    """Of the average of the weights, over a tenth of the fit at most: a short one would end as it began."""
    return min(wanted, max(0.0, 1 - 10 / max(steps, 1)))


def loss_of(training: TrainingConfig) -> Any:
    """The cross-entropy on logits that the target form takes."""
    sparse = training.target_form == "sparse"
    loss = (
        keras.losses.SparseCategoricalCrossentropy
        if sparse
        else keras.losses.CategoricalCrossentropy
    )
    return loss(from_logits=True)


def metrics_of(training: TrainingConfig) -> list[Any]:
    """The metrics that the config names, for its target form."""
    return [_METRICS[name](training.target_form == "sparse") for name in training.metrics]


def compile_model(model: Any, training: TrainingConfig, *, steps: int) -> None:
    """Compile a model for a loss on logits; modifies `model` in place.

    Args:
        model: uncompiled, ending in logits.
        training: resolved.
        steps: of the whole fit, for the schedules.
    """
    model.compile(
        optimizer=with_scaled_loss(_optimizer(training, steps), str(training.precision)),
        loss=loss_of(training),
        metrics=metrics_of(training),
        auto_scale_loss=False,  # the optimizer above does
    )
    model.optimizer.build(model.trainable_variables)
