"""The user's own networks: any bad function is reported on one line."""

import importlib
import signal
import sys
import textwrap

import numpy as np
import pytest
from command_line import call
from prefect.exceptions import TerminationSignal
from small_data import run_config

from nnbuild import models, pipeline
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.errors import ConfigError, ContractError, NnbuildError, RunError
from nnbuild.models.custom import factory_digest, import_factory
from nnbuild.pipeline import run as runs
from nnbuild.store import Store

HEAD = """
import keras
from keras import layers, ops

def dense(input_shape, classes, head=lambda x: x):
    pixels = keras.Input(input_shape)
    x = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    return keras.Model(pixels, head(layers.Dense(classes)(x)))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module to a new current folder, outside Python's search path."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # Prefect adds "." to it when it runs a flow of a deployment in this process.
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in {"", "."}])
    before = set(sys.modules)

    def write(text, name="mine"):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        return folder

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("mine", "helper", "json_")):
            del sys.modules[name]


def built(name, shape=(8, 8, 1), **training):
    given = {"model": {"name": name}, "training": {"threads": 2, **training}}
    return models.build(resolve(RunConfig.model_validate(given)), shape, 3)


def test_import_from_current_folder(module):
    folder = module(
        HEAD + "def build(input_shape, classes):\n    return dense(input_shape, classes)\n"
    )
    path = list(sys.path)
    assert str(folder) not in path
    assert built("mine:build").output_shape == (None, 3)
    assert sys.path == path


def test_late_import_of_neighbour(module):
    module("WIDTH = 7\n", "helper_of_mine")
    module(
        HEAD
        + "def build(input_shape, classes):\n"
        + "    import helper_of_mine\n"
        + "    return dense(input_shape, classes)\n"
    )
    built("mine:build")


def test_import_in_layer_call(module, small_folder, tmp_path):
    module("FACTOR = 2.0\n", "helper_of_mine")
    module(
        HEAD
        + textwrap.dedent("""
        @keras.saving.register_keras_serializable("mine")
        class Doubling(layers.Layer):
            def call(self, x):
                from helper_of_mine import FACTOR
                return x * FACTOR

        @keras.saving.register_keras_serializable("mine")
        class Stepping(keras.Model):
            def train_step(self, data):
                import helper_of_mine_too
                return super().train_step(data)

        def build(input_shape, classes):
            x = keras.Input(input_shape)
            return Stepping(x, Doubling()(layers.Dense(classes)(layers.Flatten()(x))))
        """)
    )
    module("", "helper_of_mine_too")
    config = run_config(small_folder, model={"name": "mine:build"})
    assert runs.retrain(config, tmp_path / "store").status == "succeeded"


def test_neighbour_shadows_no_library(module):
    module("raise RuntimeError('not the library')\n", "colorsys")
    module(
        "import colorsys\n" + HEAD + "def build(input_shape, classes):\n"
        "    assert colorsys.rgb_to_hsv\n    return dense(input_shape, classes)\n"
    )
    sys.modules.pop("colorsys", None)
    built("mine:build")


@pytest.mark.parametrize("name", ["random", "json", "keras", "colorsys", "numpy"])
def test_taken_module_name_raises(module, name):
    module("def build():\n    pass\n", name)
    before = sys.modules.get(name)
    with pytest.raises(ConfigError, match=f"{name}.py has the name of another module"):
        import_factory(f"{name}:build")
    assert sys.modules.get(name) is before


def test_import_package(module):
    folder = module("")
    (folder / "mine_too" / "deep").mkdir(parents=True)
    (folder / "mine_too" / "__init__.py").touch()
    (folder / "mine_too" / "deep" / "small.py").write_text("def build():\n    return 3\n")
    assert import_factory("mine_too.deep.small:build")() == 3


def test_import_folder_without_init(module):
    folder = module("")
    (folder / "mine_plain").mkdir()
    (folder / "mine_plain" / "small.py").write_text("def build():\n    return 4\n")
    assert import_factory("mine_plain.small:build")() == 4


def test_import_from_linked_folder(module, tmp_path, monkeypatch):
    folder = module("def build():\n    return 1\n")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.syspath_prepend(tmp_path / "link")
    mine = importlib.import_module("mine")

    assert import_factory("mine:build") is mine.build


def test_import_partial_function(module):
    module(
        HEAD + "from functools import partial\n"
        "def build(width, input_shape, classes):\n    return dense(input_shape, classes)\n"
        "wide = partial(build, 7)\n"
    )
    built("mine:wide")
    assert len(factory_digest("mine:wide")) == 64


def test_import_from_other_folder(module, tmp_path, monkeypatch):
    module("def build():\n    return 1\n")
    assert import_factory("mine:build")() == 1
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.py").write_text("def build():\n    return 2\n")
    monkeypatch.chdir(tmp_path / "there")
    assert import_factory("mine:build")() == 2


def test_missing_module_names_folder(module):
    folder = module("")
    with pytest.raises(ConfigError, match=f"from the current folder, {folder}, or the installed"):
        import_factory("nowhere_at_all:build")


UNUSABLE = {
    "a syntax error": ("def build(:\n", r"SyntaxError"),
    "an import that exits": ("import sys\nsys.exit(3)\n", r"SystemExit: 3"),
    "an import that raises": ("raise KeyError('a\\nb')\n", r"KeyError.*\(mine.py, line 1\)"),
    "no such function": ("def bild():\n    pass\n", r"did you mean 'bild'"),
    "no function": ("build = 3\n", r"has no function build"),
    "raises": (
        "def build():\n    raise ValueError('one\\ntwo')\n",
        r"ValueError: one two \(mine.py, line 2\)",
    ),
    "exits": ("def build():\n    raise SystemExit\n", r"raised SystemExit"),
    "an import that raises a bare exception": (
        "class Odd(BaseException):\n    pass\nraise Odd('a')\n",
        r"Odd: a \(mine.py, line 3\)",
    ),
    "raises a bare exception": (
        "def build():\n    raise BaseException('one\\ntwo')\n",
        r"raised BaseException: one two \(mine.py, line 2\)",
    ),
    "returns None": ("def build():\n    return None\n", r"returned NoneType, expected"),
    "returns a class": (
        "import keras\ndef build():\n    return keras.Model\n",
        r"returned \w+, expected",
    ),
    "wants more": ("def build(size):\n    pass\n", r"raised TypeError: .*size"),
    "a built-in": ("build = dict\n", r"returned dict, expected"),
    "is compiled": (
        HEAD + "def build(input_shape, classes):\n    model = dense(input_shape, classes)\n"
        "    model.compile('adam', 'mse')\n    return model\n",
        r"is compiled; return it uncompiled",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_function_is_one_line(module, case):
    text, says = UNUSABLE[case]
    module(text)
    with pytest.raises(NnbuildError, match=says) as caught:
        built("mine:build")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TerminationSignal(signal.SIGTERM)])
def test_request_to_stop_is_raised(module, monkeypatch, error):
    module("import builtins\ndef build():\n    raise builtins.error_of_the_test\n")
    monkeypatch.setattr("builtins.error_of_the_test", error, raising=False)
    with pytest.raises(type(error)):
        built("mine:build")


BEFORE_THE_FIT = {
    "a dict": (
        "return dense(input_shape, classes, lambda x: {'logits': x})",
        "a dict with 'logits'",
    ),
    "two outputs": ("return dense(input_shape, classes, lambda x: [x, x])", "several outputs"),
    "too many classes": ("return dense(input_shape, classes + 1)", r"outputs of shape \(None, 4\)"),
    "whole numbers": (
        "return dense(input_shape, classes, lambda x: ops.cast(x, 'int32'))",
        "logits of int32",
    ),
    "not built": ("return keras.Sequential([layers.Dense(classes)])", "has no input shape"),
    "two inputs": (
        (
            "a, b = keras.Input(input_shape), keras.Input(input_shape)\n"
            "    return keras.Model([a, b], layers.Dense(classes)(layers.Flatten()(a + b)))"
        ),
        "2 inputs",
    ),
    "an unregistered layer": (
        (
            "class Own(layers.Layer):\n"
            "        def call(self, x): return x\n"
            "    return dense(input_shape, classes, Own())"
        ),
        "contains .*Own, which is neither",
    ),
    "a config that cannot be written": (
        (
            "class Own(keras.Model):\n"
            "        def __init__(self, what):\n"
            "            super().__init__(); self.head = layers.Dense(classes)\n"
            "        def call(self, x): return self.head(layers.Flatten()(x))\n"
            "    model = Own(object())\n"
            "    model(ops.zeros((1, *input_shape)))\n"
            "    return model"
        ),
        "mine:build' cannot be|contains .*Own",
    ),
    "a compile of its own": (
        (
            "@keras.saving.register_keras_serializable('mine')\n"
            "    class Own(keras.Model):\n"
            "        def compile(self, d_optimizer): super().compile()\n"
            "    x = keras.Input(input_shape)\n"
            "    return Own(x, layers.Dense(classes)(layers.Flatten()(x)))"
        ),
        "cannot be compiled: TypeError",
    ),
    "a compile with a bare exception": (
        (
            "@keras.saving.register_keras_serializable('mine')\n"
            "    class Own(keras.Model):\n"
            "        def compile(self, *_, **__): raise BaseException('mine')\n"
            "    x = keras.Input(input_shape)\n"
            "    return Own(x, layers.Dense(classes)(layers.Flatten()(x)))"
        ),
        "cannot be compiled: BaseException: mine",
    ),
    "a train_step that raises": (
        (
            "@keras.saving.register_keras_serializable('mine')\n"
            "    class Stepping(keras.Model):\n"
            "        def train_step(self, data): raise KeyError('mine')\n"
            "    x = keras.Input(input_shape)\n"
            "    return Stepping(x, layers.Dense(classes)(layers.Flatten()(x)))"
        ),
        r"train_step raised KeyError: 'mine' \(mine.py, line \d+\)",
    ),
}


@pytest.mark.parametrize("case", BEFORE_THE_FIT)
def test_unusable_model_raises_early(module, case, small_folder, tmp_path):
    body, says = BEFORE_THE_FIT[case]
    module(f"{HEAD}\ndef build(input_shape, classes):\n    {body}\n")
    with pytest.raises(ContractError, match=says) as caught:
        runs.retrain(run_config(small_folder, model={"name": "mine:build"}), tmp_path / "store")
    assert "\n" not in str(caught.value)
    store = Store(tmp_path / "store")
    assert store.run_ids() == []
    assert not store.unfinished_runs()


def test_error_in_fit_fails_run(module, small_folder, tmp_path):
    module(
        HEAD
        + textwrap.dedent("""
        import tensorflow as tf

        @keras.saving.register_keras_serializable("mine")
        class Late(keras.Model):
            def train_step(self, data):
                logs = super().train_step(data)
                early = tf.less(self.optimizer.iterations, tf.constant(3, tf.int64))
                with tf.control_dependencies([tf.debugging.Assert(early, ["late"])]):
                    return {"loss": tf.identity(logs["loss"])}

        def build(input_shape, classes):
            x = keras.Input(input_shape)
            return Late(x, layers.Dense(classes)(layers.Flatten()(x)))
        """)
    )
    config = run_config(
        small_folder, model={"name": "mine:build"}, training={"epochs": 1, "batch_size": 8}
    )
    with pytest.raises(RunError, match="'mine:build' failed in training: InvalidArgumentError"):
        runs.retrain(config, tmp_path / "store")
    store = Store(tmp_path / "store")
    (run_id,) = store.run_ids()
    assert store.manifest(run_id).row.status == "failed"


def test_inconsistent_function_raises(module, small_folder, tmp_path):
    module(
        HEAD
        + "count = 0\n"
        + "def build(input_shape, classes):\n"
        + "    global count\n"
        + "    count += 1\n"
        + "    pixels = keras.Input(input_shape)\n"
        + "    x = layers.Dense(count)(layers.Flatten()(pixels))\n"
        + "    return keras.Model(pixels, layers.Dense(classes, dtype='float32')(x))\n"
    )
    config = run_config(
        small_folder,
        model={"name": "mine:build"},
        training={"epochs": 1, "dtype_policy": "mixed_bfloat16"},
    )
    run = runs.open_run(config, tmp_path / "store")
    with pytest.raises(ContractError, match="builds another network when it is called again"):
        pipeline.build_model(run, pipeline.load_data(run))


def test_unexported_run_names_engine(capfd, module, small_folder, tmp_path, prefect_server):
    """If ONNX lacks an operation, all outputs name the engine and the reason."""
    module(
        HEAD
        + textwrap.dedent("""
        import tensorflow as tf

        @keras.saving.register_keras_serializable("mine")
        class Bessel(layers.Layer):
            def call(self, x):
                return tf.math.bessel_i0e(x)

        def build(input_shape, classes):
            pixels = keras.Input(input_shape)
            x = Bessel()(layers.Flatten()(layers.Rescaling(1 / 255)(pixels)))
            return keras.Model(pixels, layers.Dense(classes)(x))
        """)
    )
    root = tmp_path / "store"
    options = ["--dataset", small_folder, "--model", "mine:build", "--epochs", 1, "--store", root]
    outcome = call(capfd, "run", *options)
    assert outcome.code == 0, outcome.err
    why = "Keras; not exported to ONNX: ONNX has no operation for BesselI0e"
    assert f"scoring        {why}" in outcome.out
    store = Store(root)
    (run_id,) = store.run_ids()
    assert not list(root.rglob("*.onnx"))
    manifest = store.manifest(run_id)
    assert manifest.steps.export_model.remark == "ONNX has no operation for BesselI0e"
    assert why in (root / "runs" / run_id / "report.html").read_text()

    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    score = ["score", "--input", tmp_path / "x.npz", "--store", root]
    outcome = call(capfd, *score)
    assert outcome.code == 0, outcome.err
    assert why in outcome.out
    assert store.read_table("score_jobs")["engine"].to_pylist() == ["keras"]
    outcome = call(capfd, *score, "--engine", "onnx")
    assert outcome.code == 2
    assert "set engine to keras or auto" in outcome.err
    export = ["export", "champion", "--format", "onnx", "--output", tmp_path / "m.onnx"]
    outcome = call(capfd, *export, "--store", root)
    assert outcome.code == 2
    assert "BesselI0e; use format savedmodel" in outcome.err
