"""Mistakes of users: each case prepares files in a folder and returns arguments of `nnbuild`."""

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data_files import (
    Arrays,
    idx_bytes,
    png,
    tiny,
    write_idx,
    write_npz,
    write_parquet_folder,
    write_picture_folder,
)

Prepare = Callable[[Path], list[object]]


@dataclass(frozen=True)
class Case:
    """A mistake: arguments, and a part of the expected error."""

    name: str
    prepare: Prepare
    says: str


def _run(name: str, says: str, *arguments: object) -> Case:
    return Case(name, lambda _: ["run", *arguments], says)


def _data(name: str, says: str, write: Callable[[Path], Path]) -> Case:
    return Case(name, lambda folder: ["run", "--dataset", write(folder / "data")], says)


def _config(name: str, says: str, text: str) -> Case:
    def prepare(folder: Path) -> list[object]:
        (folder / "run.toml").write_text(text)
        return ["run", "--config", folder / "run.toml"]

    return Case(name, prepare, says)


def _model(name: str, says: str, body: str) -> Case:
    """Return a case with a user's model in its own module, because Python imports a name once."""
    module = "user_" + name.replace(" ", "_").replace("-", "_")

    def prepare(folder: Path) -> list[object]:
        program = "import keras\nfrom keras import layers\n\ndef build(input_shape, classes):\n"
        (folder / f"{module}.py").write_text(
            program + "".join(f"    {line}\n" for line in body.splitlines())
        )
        return [
            "run",
            "--dataset",
            write_npz(folder / "ok.npz", tiny()),
            "--model",
            f"{module}:build",
            "--epochs",
            1,
        ]

    return Case(name, prepare, says)


def _changed(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """Return a case with IDX files of which one is changed."""

    def write(folder: Path) -> Path:
        write_idx(folder, tiny())
        path = folder / file
        path.write_bytes(change(path.read_bytes()))
        return folder

    return write


def _without(file: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (write_idx(folder, tiny()) / file).unlink()
        return folder

    return write


def _gzipped(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_idx(folder, tiny(), gzipped=True)
        path = folder / "train-images-idx3-ubyte.gz"
        path.write_bytes(change(path.read_bytes()))
        return folder

    return write


def _npz(**changed: np.ndarray) -> Callable[[Path], Path]:
    return lambda folder: write_npz(folder.with_suffix(".npz"), tiny(), **changed)


def _raw_npz(members: dict[str, bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder.with_suffix(".npz")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return write


def _pickled(folder: Path) -> Path:
    path = folder.with_suffix(".npz")
    np.savez(path, x_train=np.array([{"a": 1}], dtype=object), y_train=[0], x_test=[0], y_test=[0])
    return path


def _npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _parquet(table: pa.Table) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_parquet_folder(folder, tiny(), shape=(6, 6, 1))
        pq.write_table(table, folder / "train.parquet")
        return folder

    return write


def _bytes(ending: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.with_suffix(ending).write_bytes(content)
        return folder.with_suffix(ending)

    return write


def _pictures(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_picture_folder(folder, tiny())
        change(folder)
        return folder

    return write


def _folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _of(arrays: Arrays) -> Callable[[Path], Path]:
    return lambda folder: write_npz(folder.with_suffix(".npz"), arrays)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GOOD = tiny()
ONE_IMAGE = pa.array([bytes(36)] * 4, pa.binary(36))

USAGE = [
    _run(
        "true for a number",
        "seed is True, expected another type than a boolean",
        "--set",
        "seed=true",
    ),
    _run("two lines in a setting", "several lines", "--set", "training.epochs=3\nseed=1"),
    _run("unknown option", "No such option: --epoch", "--epoch", 3),
    _run("the help of the command", "see nnbuild run --help", "--epoch", 3),
    Case("unknown command", lambda _: ["trian"], "No such command"),
    Case("missing argument", lambda _: ["history", "--store"], "requires an argument"),
    _run("epochs not a number", "--epochs", "--epochs", "many"),
    _run("epochs 0", "training.epochs is 0", "--epochs", 0),
    _run("epochs negative", "training.epochs is -1", "--epochs", -1),
    _run("batch size 0", "training.batch_size is 0", "--batch-size", 0),
    _run("members 0", "model.ensemble_size is 0", "--ensemble-size", 0),
    _run("seed negative", "seed is -1", "--seed", -1),
    _run("seed too large", "seed is", "--seed", 2**31),
    _run("no seeds", "--seeds is 0", "--seeds", 0),
    _run("seeds past the largest", "expected less than", "--seed", 2**31 - 2, "--seeds", 3),
    _run(
        "seeds of a resumed run",
        "remove one of them",
        "--seeds",
        2,
        "--resume",
        "20200101T000000000Z-000000",
    ),
    _run(
        "validation fraction 0",
        "training.validation_fraction is 0",
        "--set",
        "training.validation_fraction=0",
    ),
    _run(
        "validation fraction 1",
        "training.validation_fraction is 1",
        "--set",
        "training.validation_fraction=1",
    ),
    _run("learning rate nan", "training.learning_rate", "--set", "training.learning_rate=nan"),
    _run(
        "learning rate negative",
        "training.learning_rate is -0.1",
        "--set",
        "training.learning_rate=-0.1",
    ),
    _run(
        "unknown optimizer", "training.optimizer is 'adamax'", "--set", "training.optimizer=adamax"
    ),
    _run("unknown setting", "did you mean 'epochs'?", "--set", "training.epoch=3"),
    _run("setting without value", "key=value", "--set", "epochs"),
    _run("setting with a bad key", "key=value", "--set", "../x=3"),
    _run("unknown section", "did you mean 'training'?", "--set", "traning.epochs=3"),
    _run("fallback to something else", "'mnist' is not one of 'digits'", "--fallback", "mnist"),
    _run("unknown dataset", "did you mean 'fashion-mnist'?", "--dataset", "fashion-mnst"),
    _run("unknown model", "did you mean 'convnet'?", "--model", "convnt"),
    _run("malformed model", "package.module:function", "--dataset", "digits", "--model", "a b:c"),
    _run(
        "model that cannot be imported",
        "cannot import no_such_module",
        "--dataset",
        "digits",
        "--model",
        "no_such_module:build",
    ),
    _run(
        "unknown metric",
        "did you mean 'accuracy'?",
        "--dataset",
        "digits",
        "--set",
        'training.metrics=["acuracy"]',
    ),
    _run(
        "metric twice", "has a metric twice", "--set", 'training.metrics=["accuracy", "accuracy"]'
    ),
    _run(
        "unknown monitor",
        "will not be in the history",
        "--dataset",
        "digits",
        "--set",
        "training.restore_best_weights=val_acuracy",
    ),
    _run(
        "schedule and plateau",
        "both set the learning rate",
        "--dataset",
        "digits",
        "--set",
        "training.lr_schedule=cosine",
        "--set",
        "training.reduce_on_plateau={}",
    ),
    _run(
        "nothing to validate on",
        "leaves",
        "--dataset",
        "digits",
        "--set",
        "training.validation_fraction=0.00001",
    ),
    _run("resume of no id", "invalid run ID", "--resume", "../../etc"),
    _run(
        "resume of an unknown run",
        "no run 20200101T000000000Z-000000",
        "--resume",
        "20200101T000000000Z-000000",
    ),
    Case("history of no id", lambda _: ["history", "x/../y"], "invalid run ID"),
    Case(
        "history of an unknown run",
        lambda _: ["history", "20200101T000000000Z-000000"],
        "no committed run",
    ),
]


def _sweep(name: str, says: str, *arguments: object) -> Case:
    return Case(f"sweep: {name}", lambda _: ["sweep", "--dataset", "digits", *arguments], says)


RATES = ("--grid", "training.learning_rate=0.1,0.2")
SEARCH = ("--search", "training.learning_rate=log:1e-4..1e-1")

SWEEPS = [
    _sweep("nothing varies", "nothing varies", "--seeds", 2),
    _sweep(
        "unknown field", "did you mean 'learning_rate'?", "--grid", "training.learning_rat=0.1,0.2"
    ),
    _sweep(
        "field without its section",
        "did you mean 'training.learning_rate'?",
        "--grid",
        "learning_rate=0.1,0.2",
    ),
    _sweep("field that may not vary", "cannot vary", "--grid", "dataset.name=mnist,digits"),
    _sweep("seeds as a grid", "cannot vary", "--grid", "seed=1,2"),
    _sweep("empty grid", "has no values", "--grid", "training.learning_rate="),
    _sweep("grid without values", "key=values", "--grid", "training.learning_rate"),
    _sweep("grid twice", "twice", *RATES, *RATES),
    _sweep("value twice", "a value twice", "--grid", "training.learning_rate=0.1,0.1"),
    _sweep(
        "value that the config refuses", "training.epochs is 0", "--grid", "training.epochs=1,0"
    ),
    _sweep(
        "unknown network in a grid", "did you mean 'convnet'?", "--grid", "model.name=lab,convnt"
    ),
    _sweep(
        "grid and search", "both a grid and a search", *RATES, "--search", "training.epochs=1..3"
    ),
    _sweep("trials of a grid", "applies to a search only", *RATES, "--trials", 3),
    _sweep("no trials", "trials is 0", *SEARCH, "--trials", 0),
    _sweep("no seeds", "seeds is 0", *RATES, "--seeds", 0),
    _sweep(
        "too many runs",
        "at most",
        *RATES,
        "--seeds",
        1000,
        "--grid",
        "training.epochs=[1,2,3,4,5,6]",
    ),
    _sweep(
        "search turned round",
        "the lower end comes first",
        "--search",
        "training.learning_rate=0.1..0.01",
    ),
    _sweep("search that ends in a word", "is not a number", "--search", "training.epochs=1..many"),
    _sweep(
        "search past the bounds",
        "training.learning_rate is 1000",
        "--search",
        "training.learning_rate=1..1000",
    ),
    _sweep(
        "unknown objective", "'test_accuracy' is not one of", *RATES, "--objective", "test_accuracy"
    ),
    _sweep(
        "objective without its metric", "needs the metric", *RATES, "--set", "training.metrics=[]"
    ),
    _sweep("storage that is no URL", "is not a database URL", *SEARCH, "--storage", "nonsense"),
    _sweep(
        "storage of no folder",
        "there is no folder",
        *SEARCH,
        "--storage",
        "sqlite:////nowhere/at/all/study.db",
    ),
    _sweep(
        "storage that nobody knows",
        "cannot be opened",
        *SEARCH,
        "--storage",
        "nonsense://127.0.0.1:9/x",
    ),
    _sweep(
        "storage without its driver",
        "needs a driver",
        *SEARCH,
        "--storage",
        "oracle://127.0.0.1:9/x",
    ),
    Case(
        "sweep: storage that is no database",
        lambda folder: [
            *("sweep", "--dataset", "digits", *SEARCH, "--storage"),
            f"sqlite:///{_bytes('.db', b'not a database' * 100)(folder / 'study')}",
        ],
        "cannot be opened",
    ),
    _sweep("id that is none", "invalid sweep ID '../x'", *RATES, "--id", "../x"),
    _sweep("unknown runner", "is not one of 'local', 'dask'", *RATES, "--runner", "spark"),
    _sweep("runner without an address", "go together", *RATES, "--runner", "dask"),
    Case("sweep: unknown id", lambda _: ["sweep", "--id", "none"], "no sweep none"),
    Case(
        "sweep: unknown key of a file",
        lambda folder: [
            "sweep",
            "--config",
            _bytes(".toml", b"[sweep]\nseed = 2\n")(folder / "sweep"),
        ],
        "unknown key 'sweep.seed'; did you mean 'seeds'?",
    ),
]

CONFIGS = [
    _config(
        "unknown key",
        "run.toml, line 3: unknown key 'training.epochz'; did you mean 'epochs'?",
        "\n[training]\nepochz = 3\n",
    ),
    _config(
        "ill-typed key",
        "run.toml, line 2: training.epochs is 'three'",
        '[training]\nepochs = "three"\n',
    ),
    _config(
        "unknown section in a file",
        "run.toml, line 1: unknown key 'trainng'",
        "[trainng]\nepochs = 3\n",
    ),
    _config(
        "out of bounds in a file",
        "run.toml, line 4: model.dropout is 1.5",
        '[model]\nname = "lab"\n\ndropout = 1.5\n',
    ),
    _config(
        "unknown key in an inline table",
        "unknown key 'training.early_stopping.patienc'",
        "[training]\nearly_stopping = {patienc = 3}\n",
    ),
    _config("two mistakes", "and 1 more", "seed = -1\n[training]\nepochs = 0\n"),
    _config("no TOML", "is not valid TOML", "epochs: 3\n"),
    Case(
        "binary config",
        lambda folder: ["run", "--config", _bytes(".toml", b"\xff\xfe\x00")(folder / "c")],
        "is not valid TOML",
    ),
    Case(
        "missing config",
        lambda folder: ["run", "--config", folder / "none.toml"],
        "cannot read config",
    ),
    Case("config is a folder", lambda folder: ["run", "--config", folder], "cannot read config"),
]

FILES = [
    _data("images missing", IMAGES, _without(IMAGES)),
    _data("labels missing", LABELS, _without(LABELS)),
    _data("idx truncated", IMAGES, _changed(IMAGES, lambda content: content[:-7])),
    _data("idx too long", IMAGES, _changed(IMAGES, lambda content: content + b"more")),
    _data("idx empty", IMAGES, _changed(IMAGES, lambda _: b"")),
    _data("idx header only half there", IMAGES, _changed(IMAGES, lambda content: content[:9])),
    _data("idx of another magic", IMAGES, _changed(IMAGES, lambda content: b"\x01" + content[1:])),
    _data(
        "idx of floats",
        IMAGES,
        _changed(IMAGES, lambda content: content[:2] + b"\x0d" + content[3:]),
    ),
    _data(
        "idx that claims 2^31 images",
        IMAGES,
        _changed(IMAGES, lambda content: content[:4] + struct.pack(">I", 2**31) + content[8:]),
    ),
    _data(
        "labels where images should be",
        "images of shape (40,)",
        _changed(IMAGES, lambda _: idx_bytes(GOOD.train_labels)),
    ),
    _data(
        "images where labels should be",
        "labels of shape (40, 6, 6)",
        _changed(LABELS, lambda _: idx_bytes(GOOD.train_images[..., 0])),
    ),
    _data("a label too few", "39", _changed(LABELS, lambda _: idx_bytes(GOOD.train_labels[:-1]))),
    _data(
        "test images of another size",
        "size",
        _changed("t10k-images-idx3-ubyte", lambda _: idx_bytes(GOOD.test_images[:, :5, :, 0])),
    ),
    _data("gzip truncated", "gz", _gzipped(lambda content: content[:-20])),
    _data("gzip corrupt", "gz", _gzipped(lambda content: content[:30] + bytes(10) + content[40:])),
    _data("gzip that is none", "gz", _gzipped(lambda _: b"not gzip at all")),
    _data(
        "gzip bomb",
        "gz",
        _gzipped(lambda _: gzip.compress(idx_bytes(GOOD.train_images[..., 0]) + bytes(10**7))),
    ),
    _data("npz wrong keys", "x_train", _raw_npz({"images.npy": _npy_header((1,)) + b"0"})),
    _data("npz with pickled objects", "object", _pickled),
    _data("npz that is no zip", "npz", _bytes(".npz", b"PK no zip")),
    _data(
        "npz member that claims too much",
        "x_train",
        _raw_npz(
            {
                **{
                    f"{key}.npy": _npy_header((2,)) + b"00"
                    for key in ("y_train", "x_test", "y_test")
                },
                "x_train.npy": _npy_header((2**31, 28, 28)),
            }
        ),
    ),
    _data("npz floats over 255", "255", _npz(x_train=GOOD.train_images.astype(float) * 2)),
    _data("npz negative floats", "255", _npz(x_train=GOOD.train_images / 255 - 0.5)),
    _data("npz nan", "image 0", _npz(x_train=np.full((40, 6, 6), np.nan))),
    _data("npz counts differ", "40", _npz(y_train=GOOD.train_labels[:-1])),
    _data("npz labels not integers", "label", _npz(y_train=GOOD.train_labels + 0.5)),
    _data("npz labels with a gap", "label", _npz(y_train=GOOD.train_labels * 10)),
    _data("npz negative labels", "label", _npz(y_train=GOOD.train_labels - 1)),
    _data(
        "npz two channels",
        "(40, 6, 6, 2)",
        _npz(x_train=np.zeros((40, 6, 6, 2), np.uint8), x_test=np.zeros((20, 6, 6, 2), np.uint8)),
    ),
    _data(
        "npz no images",
        "",
        _of(replace(GOOD, train_images=GOOD.train_images[:0], train_labels=GOOD.train_labels[:0])),
    ),
    _data(
        "one class",
        "class",
        _of(
            Arrays(GOOD.train_images, GOOD.train_labels * 0, GOOD.test_images, GOOD.test_labels * 0)
        ),
    ),
    _data("parquet without image", "image", _parquet(pa.table({"label": [0, 1, 2, 3]}))),
    _data("parquet without label", "label", _parquet(pa.table({"image": ONE_IMAGE}))),
    _data(
        "parquet null image",
        "null",
        _parquet(pa.table({"image": pa.array([bytes(36), None], pa.binary(36)), "label": [0, 1]})),
    ),
    _data(
        "parquet null label",
        "null",
        _parquet(pa.table({"image": ONE_IMAGE, "label": [0, None, 1, 2]})),
    ),
    _data(
        "parquet label text",
        "label",
        _parquet(pa.table({"image": ONE_IMAGE, "label": list("abcd")})),
    ),
    _data("parquet truncated", "parquet", _bytes(".parquet", b"PAR1 and no more")),
    _data("parquet that is text", "", _bytes(".parquet", b"a,b\n1,2\n")),
    _data(
        "parquet broken png",
        "",
        _parquet(pa.table({"image": pa.array([b"\x89PNG broken"] * 4), "label": [0, 1, 2, 3]})),
    ),
    _data("empty folder", "data", _folder),
    _data(
        "picture of another size",
        "9.png",
        _pictures(
            lambda folder: (folder / "train/0/9.png").write_bytes(
                png(np.zeros((7, 6, 1), np.uint8))
            )
        ),
    ),
    _data(
        "picture that is none",
        "9.png",
        _pictures(lambda folder: (folder / "train/0/9.png").write_bytes(b"GIF89a?")),
    ),
    _data(
        "class only in the test split",
        "z",
        _pictures(lambda folder: (folder / "test/0").rename(folder / "test/z")),
    ),
    Case(
        "mnist that is not mnist",
        lambda folder: ["run", "--data-dir", write_idx(folder / "d", GOOD)],
        "mnist",
    ),
    Case(
        "report of an unknown run",
        lambda _: ["report", "20200101T000000000Z-abcdef"],
        "no committed run",
    ),
    Case("report of no run", lambda _: ["report", "nonsense"], "invalid run ID"),
    Case(
        "compare with an unknown run",
        lambda _: ["compare", "20200101T000000000Z-abcdef", "20200101T000000000Z-abcdee"],
        "no committed run",
    ),
    Case("compare one run", lambda _: ["compare", "20200101T000000000Z-abcdef"], "two or more"),
    Case("sql that does not parse", lambda _: ["sql", "selec 1"], "syntax error"),
    Case("sql of an unknown table", lambda _: ["sql", "select * from rums"], "runs"),
    Case(
        "sql of an unknown column",
        lambda _: ["sql", "select test_acuracy from runs"],
        "test_accuracy",
    ),
    Case("sql that writes", lambda _: ["sql", "delete from runs"], "read-only"),
    Case(
        "sql that reads another file",
        lambda _: ["sql", "select * from read_csv('/etc/passwd')"],
        "/etc/passwd",
    ),
    Case(
        "mlflow in a folder",
        lambda _: ["run", "--mlflow", "./mlruns"],
        "expected a database or a server",
    ),
    Case(
        "data dir that is not there", lambda folder: ["run", "--data-dir", folder / "none"], "none"
    ),
    Case(
        "dataset path that is not there",
        lambda folder: ["run", "--dataset", folder / "none.npz"],
        "none.npz",
    ),
]

MODELS = [
    _model(
        "softmax head",
        "ends in Softmax",
        "return keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(classes, activation='softmax')])",
    ),
    _model(
        "softmax layer",
        "ends in Softmax",
        "return keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(classes), layers.Softmax()])",
    ),
    _model(
        "sigmoid behind a reshape",
        "ends in Sigmoid",
        "return keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(classes, activation='sigmoid'), layers.Reshape((classes,))])",
    ),
    _model(
        "no input shape",
        "no input shape",
        "return keras.Sequential([layers.Flatten(), layers.Dense(classes)])",
    ),
    _model(
        "one output too many",
        "(n, 4)",
        "return keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(classes + 1)])",
    ),
    _model(
        "images out",
        "(n, 4)",
        "return keras.Sequential([keras.Input(input_shape), layers.Conv2D(classes, 3)])",
    ),
    _model(
        "two outputs",
        "outputs",
        "x = keras.Input(input_shape)\ny = layers.Dense(classes)(layers.Flatten()(x))\nreturn keras.Model(x, [y, y])",
    ),
    _model(
        "another image size",
        "takes images of shape",
        "return keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(classes)])",
    ),
    _model(
        "compiled",
        "is compiled",
        "m = keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(classes)])\nm.compile(loss='mse')\nreturn m",
    ),
    _model("raises", "raised ValueError: no", "raise ValueError('no')"),
    _model("no model", "returned int", "return 3"),
    _model(
        "lambda",
        "Lambda",
        "return keras.Sequential([keras.Input(input_shape), layers.Lambda(lambda x: x), layers.Flatten(), layers.Dense(classes)])",
    ),
    _model(
        "layer that is not registered",
        "register",
        "class Own(layers.Dense):\n    pass\nreturn keras.Sequential([keras.Input(input_shape), layers.Flatten(), Own(classes)])",
    ),
]


def every_case() -> list[Case]:
    """Return all cases, except those that need a store, which are in the test."""
    return [*USAGE, *SWEEPS, *CONFIGS, *FILES, *MODELS]
