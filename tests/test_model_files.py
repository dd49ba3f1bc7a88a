"""Model files that were tampered with are refused before Keras reads them."""

import json
import zipfile

import pytest

from nnbuild.backend import keras
from nnbuild.errors import ContractError
from nnbuild.models import load_model, save_model
from nnbuild.store.files import file_digest


class Spy(keras.layers.Layer):
    """A class that nobody registered; reading it would call this."""

    read = False

    def __init__(self, **named):
        super().__init__(**named)
        Spy.read = True

    def call(self, inputs):
        return inputs


def small(*layers):
    return keras.Sequential(
        [
            keras.Input((4, 4, 1), dtype="uint8"),
            keras.layers.Flatten(),
            *layers,
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.keras"
    return path, save_model(small(), path)


def refused(path, digest, says):
    Spy.read = False
    with pytest.raises(ContractError, match=says):
        load_model(path, digest)
    assert not Spy.read


def test_a_changed_byte(model):
    path, digest = model
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(path, digest, "has sha256")


def test_another_digest_than_the_manifests(model):
    refused(model[0], "0" * 64, "has sha256")


def test_a_lambda(tmp_path):
    path = tmp_path / "lambda.keras"
    small(keras.layers.Lambda(lambda x: x)).save(path)
    refused(path, file_digest(path), "Lambda that runs code")


def test_a_class_that_the_run_does_not_bring(tmp_path):
    path = tmp_path / "custom.keras"
    small(Spy()).save(path)
    refused(path, file_digest(path), "neither Keras's nor registered")


@keras.saving.register_keras_serializable("test")
def bent(x):
    return 1.5 * keras.ops.tanh(0.6 * x)


@keras.saving.register_keras_serializable("test")
def small_weights(shape, dtype=None):
    return keras.random.normal(shape, stddev=0.05, seed=3, dtype=dtype)


@keras.saving.register_keras_serializable("test")
def shrunk(weights):
    return 1e-3 * keras.ops.sum(keras.ops.square(weights))


def not_registered(x):
    return x


@pytest.mark.parametrize(
    "options",
    [
        {"activation": bent},
        {"kernel_initializer": small_weights},
        {"kernel_regularizer": shrunk, "activation": keras.activations.gelu},
        {"kernel_constraint": shrunk},
    ],
)
def test_registered_functions_are_read(tmp_path, options):
    path = tmp_path / "model.keras"
    model = small(keras.layers.Dense(4, **options))
    read = load_model(path, save_model(model, path))
    for one, other in zip(model.get_weights(), read.get_weights(), strict=True):
        assert (one == other).all()


def test_a_function_that_nobody_registered(tmp_path):
    path = tmp_path / "model.keras"
    small(keras.layers.Dense(4, activation=not_registered)).save(path)
    refused(path, file_digest(path), "that runs code of its own; register it")


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_lambda_as_an_activation(tmp_path):
    path = tmp_path / "model.keras"
    small(keras.layers.Dense(4, activation=lambda x: x)).save(path)
    refused(path, file_digest(path), "Keras cannot read model")


@pytest.mark.parametrize("name", ["eval", "exec", "open", "__import__", None, ["eval"]])
def test_a_function_of_pythons(model, name):
    path, _ = model
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][-1]["config"]["activation"] = {
        "module": "builtins",
        "class_name": "function",
        "config": name,
        "registered_name": "function",
    }
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    refused(path, file_digest(path), "that runs code of its own")


def test_an_h5_by_another_name(tmp_path):
    import h5py

    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["weights"] = [1.0]
    path = (tmp_path / "model.h5").rename(tmp_path / "model.keras")
    refused(path, file_digest(path), r"is no \.keras file")


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "assets/evil.txt", "__init__.py"])
def test_members_that_do_not_belong(model, name):
    path, _ = model
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "evil")
    refused(path, file_digest(path), "holds")


@pytest.mark.parametrize("hidden", ["builtins", "os", "subprocess"])
def test_a_config_that_names_other_modules(model, hidden):
    path, _ = model
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1] |= {
        "module": hidden,
        "class_name": "system",
        "registered_name": None,
    }
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(path, file_digest(path), "runs code|neither Keras's")
