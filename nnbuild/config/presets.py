"""Defaults of the named networks, as plain values that need no TensorFlow."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Defaults of a network for settings that a config leaves open.

    Attributes:
        summary: Description in one line for help texts.
        training: Defaults for fields of `TrainingConfig`.
        model: Defaults for fields of `ModelConfig`.
        columns: Number of parallel, independent columns of the network.
        takes: Fields of `ModelConfig` that have an effect on the network.
    """

    summary: str
    training: dict[str, object]
    model: dict[str, object] = field(default_factory=dict)
    columns: int = 1
    takes: tuple[str, ...] = ("dropout",)


_BASE_DEFAULTS: dict[str, object] = {
    "optimizer": "adam",
    "lr_schedule": "constant",
    "augmentation": "none",
    "dtype_policy": "float32",
    "validation_fraction": 0.2,
}
# Settings that were chosen with 10,000 held-out images train on nearly all of them: a sixtieth is
# enough to fit the temperature and to monitor the training.
VALIDATION_FRACTION = 1 / 60
_AUGMENTED_DEFAULTS: dict[str, object] = {
    **_BASE_DEFAULTS,
    "batch_size": 128,
    "lr_schedule": "one-cycle",
    "augmentation": "affine",
    "ema_decay": 0.998,
    "dtype_policy": "mixed_bfloat16",
    "validation_fraction": VALIDATION_FRACTION,
}
_NO_REGULARIZATION: dict[str, object] = {"l2": 0.0, "dropout": 0.0}

DATASETS = ("mnist", "fashion-mnist", "kmnist", "digits")
"""Names for `dataset.name`; any other value is a path."""


def is_fallback(dataset: str | None, requested: str, fallback: str | None) -> bool:
    """Return whether a run was trained on its fallback dataset.

    Args:
        dataset: Name of the dataset that was trained on.
        requested: Value of `dataset.name`; only named datasets have a fallback, paths do not.
        fallback: Value of `dataset.fallback`.
    """
    return fallback is not None and fallback == dataset != requested and requested in DATASETS


METRICS = ("accuracy", "crossentropy", "top_2_accuracy", "top_5_accuracy")
"""Names for `training.metrics`."""

MONITORS = tuple(f"{subset}{name}" for name in ("loss", *METRICS) for subset in ("", "val_"))
"""Names for settings that monitor a metric, if that metric is recorded."""

PRESETS: dict[str, Preset] = {
    "lab": Preset(
        "Two hidden layers of 25 and 15 ReLU units; Adam 1e-3, batch 32",
        {**_BASE_DEFAULTS, "epochs": 40, "batch_size": 32, "learning_rate": 1e-3},
        _NO_REGULARIZATION,
        takes=("l2", "dropout"),
    ),
    "regularized": Preset(
        "Two hidden layers of 120 and 40 ReLU units with an L2 penalty; Adam 1e-2",
        {**_BASE_DEFAULTS, "epochs": 20, "batch_size": 128, "learning_rate": 1e-2},
        {"l2": 1e-5, "dropout": 0.0},
        takes=("l2", "dropout"),
    ),
    "convnet": Preset(
        "The MNIST convnet of keras.io with a logits head, 34,826 parameters; Adam 1e-3, batch 128",
        {**_BASE_DEFAULTS, "epochs": 12, "batch_size": 128, "learning_rate": 1e-3},
        {"l2": 0.0, "dropout": 0.5},
    ),
    "fast": Preset(
        "Small CNN with a one-cycle learning rate in bfloat16: 99 % on MNIST in seconds",
        {
            **_BASE_DEFAULTS,
            "epochs": 2,
            "batch_size": 256,
            "learning_rate": 1.4e-2,
            "beta_1": 0.7,
            "beta_2": 0.9,
            "lr_schedule": "one-cycle",
            "dtype_policy": "mixed_bfloat16",
            "validation_fraction": VALIDATION_FRACTION,
        },
        _NO_REGULARIZATION,
    ),
    "accurate": Preset(
        "Three different CNN columns, test-time augmentation, affine augmentation, Muon, in "
        "bfloat16: the highest accuracy",
        {
            **_AUGMENTED_DEFAULTS,
            "epochs": 33,
            "batch_size": 384,
            "learning_rate": 6e-3,
            "optimizer": "muon",
        },
        _NO_REGULARIZATION,
        columns=3,
    ),
    "tiny": Preset(
        "Fewer than 8,000 weights, batch normalisation, affine augmentation, in bfloat16: 99.4 % "
        "on MNIST with little memory",
        {**_AUGMENTED_DEFAULTS, "epochs": 30, "learning_rate": 1e-2},
        _NO_REGULARIZATION,
    ),
}

USER_MODEL = Preset(
    "Your own function that returns an uncompiled Keras model",
    {**_BASE_DEFAULTS, "epochs": 10, "batch_size": 128, "learning_rate": 1e-3},
    _NO_REGULARIZATION,
    takes=(),
)


def preset_values(name: str) -> dict[str, object]:
    """Return the default of each network, and of the user's own, for a setting."""
    presets = {**PRESETS, "your own": USER_MODEL}
    return {
        network: (preset.training | preset.model)[name]
        for network, preset in presets.items()
        if name in preset.training | preset.model
    }


def with_preset_values(schema: dict[str, Any]) -> None:
    """Add the defaults of the networks to the descriptions in a JSON schema.

    This modifies `schema` in place; Prefect's form shows the descriptions.
    """
    for name, each in schema.get("properties", {}).items():
        values = {network: _text(value) for network, value in preset_values(name).items()}
        if not values:
            continue
        networks = {
            value: [network for network in values if values[network] == value]
            for value in dict.fromkeys(values.values())
        }
        defaults = (f"{value} ({', '.join(names)})" for value, names in networks.items())
        everywhere = len(networks) == 1 and len(values) == len(PRESETS) + 1
        text = next(iter(networks)) if everywhere else "; ".join(defaults)
        each["description"] = f"{each.get('description', '')}. Left empty: {text}"


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
