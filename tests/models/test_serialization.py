"""Manipulated model files are refused before Keras reads them."""

import io
import json
import os
import zipfile

import h5py
import pytest

from nnbuild.errors import ContractError
from nnbuild.models import load_model, save_model
from nnbuild.runtime.tensorflow import keras
from nnbuild.store.filesystem import file_digest


class Spy(keras.layers.Layer):
    """Unregistered class, which Keras would call when it reads the model."""

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


def test_load_changed_byte_raises(model):
    path, digest = model
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(path, digest, "has sha256")


def test_load_other_digest_raises(model):
    refused(model[0], "0" * 64, "has sha256")


def test_load_lambda_raises(tmp_path):
    path = tmp_path / "lambda.keras"
    small(keras.layers.Lambda(lambda x: x)).save(path)
    refused(path, file_digest(path), "Lambda that runs code")


def test_load_unregistered_class_raises(tmp_path):
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
def test_load_registered_function(tmp_path, options):
    path = tmp_path / "model.keras"
    model = small(keras.layers.Dense(4, **options))
    read = load_model(path, save_model(model, path))
    for one, other in zip(model.get_weights(), read.get_weights(), strict=True):
        assert (one == other).all()


def test_load_unregistered_function(tmp_path):
    path = tmp_path / "model.keras"
    small(keras.layers.Dense(4, activation=not_registered)).save(path)
    refused(path, file_digest(path), "that runs code of its own; register it")


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_load_lambda_activation_raises(tmp_path):
    path = tmp_path / "model.keras"
    small(keras.layers.Dense(4, activation=lambda x: x)).save(path)
    refused(path, file_digest(path), "Keras cannot read model")


@pytest.mark.parametrize("name", ["eval", "exec", "open", "__import__", None, ["eval"]])
def test_load_python_function_raises(model, name):
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


def test_load_h5_raises(tmp_path):
    import h5py

    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["weights"] = [1.0]
    path = (tmp_path / "model.h5").rename(tmp_path / "model.keras")
    refused(path, file_digest(path), r"is not a \.keras file")


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "assets/evil.txt", "__init__.py"])
def test_load_unknown_member_raises(model, name):
    path, _ = model
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "evil")
    refused(path, file_digest(path), "has the members")


@pytest.mark.parametrize("hidden", ["builtins", "os", "subprocess"])
def test_load_other_module_raises(model, hidden):
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


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, each in content.items():
            archive.writestr(name, each)


def weights(build):
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        build(opened)
    return file.getvalue()


def _linked(file):
    file["layers"] = h5py.ExternalLink("/etc/other.h5", "/layers")


def _in_another_file(file):
    file.create_dataset("w", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def _virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
    file.create_virtual_dataset("w", layout)


def _declared(file):
    file.create_dataset("w", (10**6, 10**4), "f4")


def _compressed(file):
    file.create_dataset("w", (30_000, 10_000), "f4", chunks=(3000, 1000), compression="gzip")


def _many(file):
    for number in range(3):
        file.create_dataset(f"layers/{number}/w", (10**5, 100), "f4")


def _circular(file):
    group = file.create_group("a")
    group["a"] = group


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_load_large_member_raises(model, name):
    path, _ = model
    write(path, members(path) | {name: b" " * (100 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    refused(path, file_digest(path), "expands to 104857600 bytes")


def test_load_false_size_raises(model):
    path, _ = model
    write(path, members(path) | {"config.json": b" " * 4096}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes().replace((4096).to_bytes(4, "little"), (8).to_bytes(4, "little"))
    path.write_bytes(content)
    refused(path, file_digest(path), r"is not a \.keras file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_load_duplicate_member_raises(model):
    path, _ = model
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    refused(path, file_digest(path), "has a member twice")


def test_load_long_directory_raises(model):
    path, _ = model
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(200):
            archive.writestr(f"{number}", b"")
    refused(path, file_digest(path), "has 203 members")


def test_load_deep_config_raises(model):
    path, _ = model
    write(path, members(path) | {"config.json": b"[" * 10**6 + b"]" * 10**6})
    refused(path, file_digest(path), r"is not a \.keras file")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (_linked, "ExternalLink"),
        (_in_another_file, "in other files"),
        (_virtual, "in other files"),
        (_declared, "declare 40000000000 bytes"),
        (_compressed, "declare 1200000000 bytes"),
        (_many, "declare"),
        (_circular, "cannot read|restore"),
        (lambda file: file.attrs.create("empty", 1), "cannot read"),
    ],
)
def test_load_external_weights_raises(model, build, says):
    path, _ = model
    write(path, members(path) | {"model.weights.h5": weights(build)})
    refused(path, file_digest(path), says)


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_load_damaged_weights_raises(model, content):
    path, _ = model
    write(path, members(path) | {"model.weights.h5": content})
    refused(path, file_digest(path), "no readable weights")


@pytest.mark.parametrize("rebuilt", [True, False])
@pytest.mark.parametrize("sizes", [[10**9], [2_000_000, 20_000]])
def test_load_huge_layers_raises(model, sizes, rebuilt):
    path, _ = model
    config = small(*[keras.layers.Dense(1, name=f"wide_{each}") for each in range(len(sizes))])
    config = json.loads(config.to_json())
    for layer in config["config"]["layers"]:
        name = layer["config"].get("name", "")
        if name.startswith("wide_"):
            layer["config"]["units"] = sizes[int(name.removeprefix("wide_"))]
        if rebuilt:
            layer.pop("build_config", None)
    write(path, members(path) | {"config.json": json.dumps(config)})
    refused(path, file_digest(path), "bytes of weights, and")


def test_load_check_leaves_no_variables(model):
    path, digest = model
    first, second = (load_model(path, digest, seed=3) for _ in range(2))
    assert [each.path for each in first.variables] == [each.path for each in second.variables]
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        assert (one == other).all()


def test_load_pipe_raises(tmp_path):
    path = tmp_path / "model.keras"
    os.mkfifo(path)
    refused(path, "0" * 64, "is a named pipe")
