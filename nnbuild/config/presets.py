"""The named networks' training defaults, as plain values: reading them costs no TensorFlow import."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """What a network is trained with unless the config says otherwise.

    Attributes:
        summary: one line for the help texts.
        training: fields of `TrainingConfig`.
        model: fields of `ModelConfig`.
        columns: how many networks it has side by side, none of which waits for another.
        takes: Fields of `ModelConfig` that change it.
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
# What was chosen with the last 10,000 training images held out is trained on nearly all of them: a sixtieth is left for
# the temperature, and to watch.
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
"""What `dataset.name` may name; anything else is a path."""

METRICS = ("accuracy", "crossentropy", "top_2_accuracy", "top_5_accuracy")
"""What `training.metrics` may name."""

MONITORS = tuple(f"{subset}{name}" for name in ("loss", *METRICS) for subset in ("", "val_"))
"""What a setting that watches a metric may name, if that metric is kept."""

PRESETS: dict[str, Preset] = {
    "lab": Preset(
        "the guide's lab: 25 and 15 relu units; Adam 1e-3, batch 32",
        {**_BASE_DEFAULTS, "epochs": 40, "batch_size": 32, "learning_rate": 1e-3},
        _NO_REGULARIZATION,
        takes=("l2", "dropout"),
    ),
    "regularized": Preset(
        "120 and 40 relu units with an L2 penalty; Adam 1e-2",
        {**_BASE_DEFAULTS, "epochs": 20, "batch_size": 128, "learning_rate": 1e-2},
        {"l2": 1e-5, "dropout": 0.0},
        takes=("l2", "dropout"),
    ),
    "convnet": Preset(
        "keras.io's MNIST convnet, 34,826 parameters, with a logits head; Adam 1e-3, batch 128",
        {**_BASE_DEFAULTS, "epochs": 12, "batch_size": 128, "learning_rate": 1e-3},
        {"l2": 0.0, "dropout": 0.5},
    ),
    "fast": Preset(
        "small convolutions and a one-cycle learning rate, in bfloat16: 99 % in seconds",
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
        "three unlike columns of convolutions, four views at scoring, affine maps, Muon, in bfloat16: the highest",
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
        "fewer than 8,000 weights, batch norm and random affine maps, in bfloat16: 99.4 % where memory is scarce",
        {**_AUGMENTED_DEFAULTS, "epochs": 30, "learning_rate": 1e-2},
        _NO_REGULARIZATION,
    ),
}

USER_MODEL = Preset(
    "a function of your own that returns an uncompiled Keras model",
    {**_BASE_DEFAULTS, "epochs": 10, "batch_size": 128, "learning_rate": 1e-3},
    _NO_REGULARIZATION,
    takes=(),
)


def preset_values(name: str) -> dict[str, object]:
    """Return what each network, and the user's own, brings for a setting that is left open."""
    brought = {**PRESETS, "your own": USER_MODEL}
    return {
        network: (preset.training | preset.model)[name]
        for network, preset in brought.items()
        if name in preset.training | preset.model
    }


def with_preset_values(schema: dict[str, Any]) -> None:
    """Say in the descriptions of a JSON schema which value a setting takes that is left open.

    Modifies `schema` in place; Prefect's form shows the descriptions.
    """
    for name, each in schema.get("properties", {}).items():
        values = {network: _text(value) for network, value in preset_values(name).items()}
        if not values:
            continue
        networks = {
            value: [network for network in values if values[network] == value]
            for value in dict.fromkeys(values.values())
        }
        brought = (f"{value} ({', '.join(names)})" for value, names in networks.items())
        everywhere = len(networks) == 1 and len(values) == len(PRESETS) + 1
        told = next(iter(networks)) if everywhere else "; ".join(brought)
        each["description"] = f"{each.get('description', '')}. Left empty: {told}"


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
