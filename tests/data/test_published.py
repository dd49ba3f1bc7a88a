"""Layouts and labels of published image datasets."""

import gzip
import struct
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import image_column, png, tiny, write_npz, write_parquet, write_pictures
from PIL import Image
from score_data import images, parquet, rows, scored
from small_data import run_config

from nnbuild.config.sections import DatasetConfig
from nnbuild.data import (
    dataset_reader,
    dataset_writer,
    image_folder,
    preprocessing,
    sources,
)
from nnbuild.data.formats import open_stream
from nnbuild.data.options import ReadOptions
from nnbuild.data.streams import Columns, RejectedRows, StreamOptions
from nnbuild.errors import DataError, InputError
from nnbuild.pipeline.run import retrain
from nnbuild.store import Store

SHAPE = (6, 6, 1)


def load(path, **options):
    return sources.load(str(path), data_dir=None, cache=path, options=ReadOptions(**options))


def refusal(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_idx(path, array):
    code = {"uint8": 0x08, "int32": 0x0C}[array.dtype.name]
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(header + array.astype(array.dtype.newbyteorder(">")).tobytes()))


def test_emnist_is_transposed_and_numbered(tmp_path):
    arrays = tiny(train=52, test=26, classes=26)
    for split, pixels, labels in (
        ("train", arrays.train_images, arrays.train_labels),
        ("test", arrays.test_images, arrays.test_labels),
    ):
        stem = tmp_path / "emnist" / f"emnist-letters-{split}"
        write_idx(
            stem.with_name(f"{stem.name}-images-idx3-ubyte.gz"), pixels[..., 0].transpose(0, 2, 1)
        )
        write_idx(
            stem.with_name(f"{stem.name}-labels-idx1-ubyte.gz"), (labels + 1).astype(np.uint8)
        )
    dataset = load(tmp_path / "emnist")
    np.testing.assert_array_equal(dataset.train.images, arrays.train_images)
    np.testing.assert_array_equal(dataset.test.labels, arrays.test_labels)
    assert dataset.class_names == tuple(map(str, range(1, 27)))
    assert "transposed" in dataset.source
    path = tmp_path / "emnist" / "emnist-letters-test-images-idx3-ubyte.gz"
    source = open_stream(str(path), StreamOptions(SHAPE))
    (read,) = source.read(source.chunks()[0], 100)
    np.testing.assert_array_equal(read.images, arrays.test_images)
    write_idx(
        tmp_path / "emnist" / "emnist-mnist-test-images-idx3-ubyte.gz", arrays.test_images[..., 0]
    )
    assert "emnist-letters, emnist-mnist" in refusal(tmp_path / "emnist")


def test_qmnist_class_is_the_first_column(tmp_path):
    arrays = tiny()
    for split, pixels, labels in (
        ("train", arrays.train_images, arrays.train_labels),
        ("test", arrays.test_images, arrays.test_labels),
    ):
        eight = np.full((len(labels), 8), 7, np.int32)
        eight[:, 0] = labels
        write_idx(tmp_path / "q" / f"qmnist-{split}-images-idx3-ubyte.gz", pixels[..., 0])
        write_idx(tmp_path / "q" / f"qmnist-{split}-labels-idx2-int.gz", eight)
    dataset = load(tmp_path / "q")
    np.testing.assert_array_equal(dataset.train.labels, arrays.train_labels)
    np.testing.assert_array_equal(dataset.test.images, arrays.test_images)


NAMES = [
    ("x_train", "y_train", "x_test", "y_test"),
    ("X_train", "Y_train", "X_test", "Y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("images_training", "targets_training", "images_testing", "targets_testing"),
    ("trainImages", "trainLabels", "testImages", "testLabels"),
    ("train_x", "train_y", "test_x", "test_y"),
]


@pytest.mark.parametrize("names", NAMES)
def test_npz_keys_are_found(tmp_path, names):
    arrays = tiny()
    np.savez(tmp_path / "a.npz", **dict(zip(names, arrays, strict=True)), classmap=np.zeros(3))
    np.testing.assert_array_equal(load(tmp_path / "a.npz").test.images, arrays.test_images)


@pytest.mark.parametrize("name", ["x_val", "val_images", "X_valid", "x_validation", "dev_x"])
def test_npz_validation_is_used(tmp_path, name):
    arrays = tiny()
    labels = name.replace("x", "y").replace("X", "y").replace("images", "labels")
    more = {name: arrays.test_images[::-1], labels: arrays.test_labels[::-1]}
    dataset = load(write_npz(tmp_path / "a.npz", arrays, **more))
    np.testing.assert_array_equal(dataset.validation.images, arrays.test_images[::-1])
    np.testing.assert_array_equal(dataset.validation.labels, arrays.test_labels[::-1])


def test_npz_keys_can_be_named(tmp_path):
    arrays = tiny()
    np.savez(tmp_path / "a.npz", a=arrays.train_images, b=arrays.train_labels, c=np.zeros(2))
    assert "it holds a, b, c" in refusal(tmp_path / "a.npz")
    dataset = load(tmp_path / "a.npz", keys={"x_train": "a", "y_train": "b"})
    assert len(dataset.train) + len(dataset.test) == 40
    assert "did you mean" in refusal(tmp_path / "a.npz", keys={"x_train": "aa", "y_train": "b"})
    for given in ({"keys": {"x_train": "a"}}, {"array_keys": {"x_train": "a"}}):
        assert DatasetConfig.model_validate(given).array_keys == {"x_train": "a"}
    with pytest.raises(ValueError, match="not an array of a dataset"):
        DatasetConfig.model_validate({"keys": {"pixels": "a"}})


def test_npz_alone_or_with_half_a_split(tmp_path):
    arrays = tiny()
    np.savez(tmp_path / "a.npz", x_train=arrays.train_images, y_train=arrays.train_labels)
    assert "a sixth of the images" in load(tmp_path / "a.npz").source
    np.savez(tmp_path / "b.npz", images=arrays.train_images, labels=arrays.train_labels)
    assert load(tmp_path / "b.npz").digest == load(tmp_path / "a.npz").digest
    np.savez(
        tmp_path / "c.npz",
        x_train=arrays.train_images,
        y_train=arrays.train_labels,
        x_val=arrays.test_images,
    )
    assert "x_val has no labels" in refusal(tmp_path / "c.npz")


def test_arrays_in_files_of_their_own(tmp_path):
    arrays = tiny()
    for split, kind, array in (
        ("train", "imgs", arrays.train_images),
        ("train", "labels", arrays.train_labels),
        ("test", "imgs", arrays.test_images),
        ("test", "labels", arrays.test_labels),
    ):
        np.savez_compressed(tmp_path / f"k49-{split}-{kind}.npz", array)
    (tmp_path / "k49_classmap.csv").write_text("x")
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.train.images, arrays.train_images)
    np.testing.assert_array_equal(dataset.test.labels, arrays.test_labels)
    source = open_stream(str(tmp_path / "k49-test-imgs.npz"), StreamOptions(SHAPE))
    assert sum(chunk.rows for chunk in source.chunks()) == 20


PARQUET_LAYOUTS = [
    ("train-00000-of-00001", "test-00000-of-00001", "validation-00000-of-00001"),
    ("data/Train-00000-of-00001", "data/TEST-00000-of-00001", "data/Val-00000-of-00001"),
    ("mnist/train/0000", "mnist/test/0000", "mnist/validation/0000"),
    ("training/day=1/part-0", "testing/day=1/part-0", "dev/day=1/part-0"),
    ("mnist_train", "mnist_test", "mnist_valid"),
]


@pytest.mark.parametrize("layout", PARQUET_LAYOUTS)
@pytest.mark.parametrize("ending", [".parquet", ""])
def test_parquet_layouts_are_read(tmp_path, layout, ending):
    arrays = tiny()
    given = (
        (arrays.train_images, arrays.train_labels),
        (arrays.test_images, arrays.test_labels),
        (arrays.test_images[::-1], arrays.test_labels[::-1]),
    )
    for name, (pixels, labels) in zip(layout, given, strict=True):
        write_parquet(tmp_path / f"{name}{ending}", pixels, labels, "hugging_face")
    (tmp_path / "README.md").write_text("card")
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.train.images, arrays.train_images)
    np.testing.assert_array_equal(dataset.test.images, arrays.test_images)
    np.testing.assert_array_equal(dataset.validation.images, arrays.test_images[::-1])


def test_parquet_without_split_is_noted(tmp_path):
    arrays = tiny()
    for name in ("train-0", "extra-0"):
        write_parquet(tmp_path / f"{name}.parquet", arrays.train_images, arrays.train_labels)
    assert "not read, not named after a split: extra-0.parquet" in load(tmp_path).source
    (tmp_path / "other").mkdir()
    write_parquet(tmp_path / "other" / "train.parquet", arrays.train_images, arrays.train_labels)
    assert "two datasets" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("image", "label", "options"),
    [
        ("img", "label", {}),
        ("img", "fine_label", {}),
        ("scan", "kind", {"image_column": "scan", "label_column": "kind"}),
    ],
)
def test_columns_of_other_names(tmp_path, image, label, options):
    arrays = tiny()
    table = pa.table(
        {image: image_column(arrays.train_images, "hugging_face"), label: arrays.train_labels}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = load(tmp_path / "a.parquet", **options)
    assert len(dataset.train) + len(dataset.test) == 40
    columns = Columns(image=options.get("image_column"), label=options.get("label_column"))
    source = open_stream(str(tmp_path / "a.parquet"), StreamOptions(SHAPE, columns))
    (read,) = source.read(source.chunks()[0], 100)
    np.testing.assert_array_equal(read.images, arrays.train_images)
    assert read.labels.to_pylist() == arrays.train_labels.tolist()
    assert "no column 'scna'" in refusal(tmp_path / "a.parquet", image_column="scna")


def text(labels):
    return np.array([f"digit {label}" for label in labels])


LABELS = {
    "floats": (lambda labels: labels.astype(float), ("0", "1", "2", "3")),
    "one-hot": (lambda labels: np.eye(4, dtype=np.float32)[labels], ("0", "1", "2", "3")),
    "one-hot integers": (lambda labels: np.eye(4, dtype=int)[labels], ("0", "1", "2", "3")),
    "a column": (lambda labels: labels[:, np.newaxis], ("0", "1", "2", "3")),
    "from 1": (lambda labels: labels + 1, ("1", "2", "3", "4")),
    "gaps": (lambda labels: labels * 5 + 3, ("3", "8", "13", "18")),
    "text": (text, ("digit 0", "digit 1", "digit 2", "digit 3")),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_of_any_form_in_npz(tmp_path, form):
    made, names = LABELS[form]
    arrays = tiny()
    path = write_npz(
        tmp_path / "a.npz",
        arrays,
        y_train=made(arrays.train_labels),
        y_test=made(arrays.test_labels),
    )
    dataset = load(path)
    assert dataset.class_names == names
    np.testing.assert_array_equal(dataset.train.labels, arrays.train_labels)
    np.testing.assert_array_equal(dataset.test.labels, arrays.test_labels)


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("encoded", [False, True])
def test_labels_of_any_form_in_parquet(tmp_path, form, encoded):
    made, names = LABELS[form]
    arrays = tiny()
    for split, pixels, labels in (
        ("train", arrays.train_images, arrays.train_labels),
        ("test", arrays.test_images, arrays.test_labels),
    ):
        column = pa.array(made(labels).tolist())
        if encoded and column.type == pa.string():
            column = column.dictionary_encode()
        table = pa.table({"image": image_column(pixels, "list"), "label": column})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    if form == "a column":
        assert load(tmp_path).classes == 4
        return
    dataset = load(tmp_path)
    assert dataset.class_names == names
    np.testing.assert_array_equal(dataset.test.labels, arrays.test_labels)


def test_unlabelled_images_are_omitted(tmp_path):
    arrays = tiny()
    none = np.full(20, -1)
    dataset = load(write_npz(tmp_path / "a.npz", arrays, y_test=none))
    assert "test split omitted" in dataset.source
    assert "a sixth of the images" in dataset.source
    some = arrays.train_labels.copy()
    some[:3] = -1
    dataset = load(write_npz(tmp_path / "b.npz", arrays, y_train=some))
    assert (len(dataset.train), dataset.class_names) == (37, ("0", "1", "2", "3"))
    assert "3 training images without a label omitted" in dataset.source
    assert "no training image has a label" in refusal(
        write_npz(tmp_path / "c.npz", arrays, y_train=np.full(40, -1))
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"y_train": tiny().train_labels - 1},  # -1 is unlabelled, so no training image has label 3
        {"y_train": tiny().train_labels * 10},
        {"y_test": tiny().test_labels * 10},
        {"y_train": text(tiny().train_labels)},
    ],
)
def test_labels_of_two_kinds_are_refused(tmp_path, changed):
    assert "label" in refusal(write_npz(tmp_path / "a.npz", tiny(), **changed))


def test_class_names_are_normalized(tmp_path):
    arrays = tiny(classes=2)
    names = ["é", "क्‍ष"]  # the second with a zero-width joiner
    write_pictures(tmp_path / "train", arrays.train_images, arrays.train_labels, names)
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert decomposed != names
    write_pictures(tmp_path / "test", arrays.test_images, arrays.test_labels, decomposed)
    assert load(tmp_path).class_names == tuple(names)
    (tmp_path / "train" / decomposed[0]).mkdir()
    (tmp_path / "train" / decomposed[0] / "a.png").write_bytes(png(arrays.train_images[0]))
    assert "in different Unicode forms" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "validation"),
    [
        ("train", "test", "val"),
        ("Train", "TEST", "Valid"),
        ("training", "testing", "validation"),
        ("TRAINING", "Test", "dev"),
    ],
)
def test_folders_of_splits_are_found(tmp_path, train, test, validation):
    arrays = tiny()
    write_pictures(tmp_path / train, arrays.train_images, arrays.train_labels)
    write_pictures(tmp_path / test, arrays.test_images, arrays.test_labels)
    write_pictures(tmp_path / validation, arrays.test_images[:8], arrays.test_labels[:8])
    dataset = image_folder.load(tmp_path)
    assert [len(split) for split in dataset.splits.values()] == [40, 20, 8]
    (tmp_path / "trAin").mkdir()
    assert "both named after the train split" in refusal(tmp_path)


def test_folders_without_split_are_noted(tmp_path):
    arrays = tiny()
    write_pictures(tmp_path / "train", arrays.train_images, arrays.train_labels)
    write_pictures(tmp_path / "unlabelled", arrays.train_images, arrays.train_labels)
    assert "not read, not named after a split: unlabelled" in load(tmp_path).source
    (tmp_path / "train").rename(tmp_path / "val")
    (tmp_path / "unlabelled").rename(tmp_path / "test")
    assert "no train/" in refusal(tmp_path)


def test_class_may_have_the_name_of_split(tmp_path):
    arrays = tiny(classes=2)
    write_pictures(tmp_path, arrays.train_images, arrays.train_labels, ["bus", "train"])
    assert load(tmp_path).class_names == ("bus", "train")


def test_stored_dataset_keeps_validation(tmp_path):
    arrays = tiny()
    more = {"x_val": arrays.test_images[:6], "y_val": arrays.test_labels[:6]}
    dataset = load(write_npz(tmp_path / "a.npz", arrays, **more))
    plain = load(write_npz(tmp_path / "b.npz", arrays))
    dataset_writer.write_dataset(dataset, tmp_path / "stored")
    dataset_writer.write_dataset(plain, tmp_path / "plain")
    read = dataset_reader.read_dataset(tmp_path / "stored")
    assert read.digest == dataset.digest != plain.digest
    np.testing.assert_array_equal(read.validation.labels, arrays.test_labels[:6])
    assert "validation" not in (tmp_path / "plain" / "dataset.json").read_text()
    assert dataset_reader.read_dataset(tmp_path / "plain").digest == plain.digest
    (tmp_path / "stored" / "validation.parquet").unlink()
    with pytest.raises(DataError, match=r"validation\.parquet"):
        dataset_reader.read_dataset(tmp_path / "stored")


def test_run_uses_the_validation_split(tmp_path):
    arrays = tiny(train=120, test=40, shape=(8, 8, 1))
    own = {"x_val": arrays.test_images[:24], "y_val": arrays.test_labels[:24]}
    path = write_npz(tmp_path / "a.npz", arrays, **own)
    done = retrain(run_config(path), tmp_path / "store")
    store = Store(tmp_path / "store")
    manifest = store.manifest(done.run_id)
    loaded = manifest.steps.load_data
    assert (loaded.train, loaded.validation, loaded.test) == (120, 24, 40)
    assert loaded.pixel_scales["validation"] == "uint8 from 0 to 255"
    assert manifest.steps.compile_model.steps_per_epoch == -(-120 // 32)
    bins = store.read_table("calibration", done.run_id).to_pylist()
    counted = sum(
        each["count"]
        for each in bins
        if each["subset"] == "validation" and each["temperature"] == 1
    )
    assert counted == 24


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    upright = np.zeros((8, 8), np.uint8)
    upright[1:3, 1:6] = 200
    back = {
        1: lambda image: image,
        2: np.fliplr,
        3: lambda image: np.rot90(image, 2),
        4: np.flipud,
        5: np.transpose,
        6: np.rot90,
        7: lambda image: np.rot90(image, 2).T,
        8: lambda image: np.rot90(image, -1),
    }
    tag = Image.Exif()
    tag[0x0112] = orientation
    lying = np.ascontiguousarray(back[orientation](upright))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100}
    path = tmp_path / "0" / f"a.{kind.lower()}"
    path.parent.mkdir()
    Image.fromarray(lying).convert("RGB").save(path, kind, exif=tag, **options)
    found = preprocessing.read(path)[..., 0].astype(int)
    assert np.abs(found - upright).max() < 30
    source = open_stream(str(tmp_path), StreamOptions((8, 8, 3)))
    (read,) = source.read(source.chunks()[0], 10)
    np.testing.assert_array_equal(read.images[0, ..., 0], found)


def test_damaged_exif_keeps_the_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(path, exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert preprocessing.read(path).max() == 7


def test_damaged_exif_of_a_jpeg_keeps_the_picture(tmp_path):
    (tmp_path / "0").mkdir()
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"  # ends in the first of 65,535 tags
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "0" / "a.jpg", exif=exif)
    source = open_stream(str(tmp_path), StreamOptions((8, 8, 1)))
    (batch,) = source.read(source.chunks()[0], 10)
    assert batch.images.max() == 7


def test_pictures_read_in_threads_leave_the_filters_of_warnings(tmp_path):
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        for number in range(300):
            Image.fromarray(np.full((8, 8), 7, np.uint8)).save(folder / f"{number}.jpg")
    before = list(warnings.filters)

    def read(folder):
        source = open_stream(str(folder), StreamOptions((8, 8, 1)))
        batches = [batch for each in source.chunks() for batch in source.read(each, 2)]
        assert sum(len(each.images) for each in batches) == 300
        return all(warnings.filters == before for _ in source.read(source.chunks()[0], 2))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(read, folders))
    assert warnings.filters == before


def test_quarantine_reason_names_the_format(tmp_path):
    contents = {
        "a.png": (b"", "an empty file"),
        "b.jpg": (b"GIF89a", "a GIF"),
        "c.bmp": (b"II*\0", "a TIFF"),
        "d.png": (b"hello", "an unknown format"),
        "e.png": (png(tiny().train_images[0])[:-20], ""),
        "f.webp": (b"RIFF\0\0\0\0WEBPVP8 ", ""),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    reasons = []
    for _ in range(2):
        source = open_stream(str(tmp_path), StreamOptions(SHAPE))
        found = [each for chunk in source.chunks() for each in source.read(chunk, 10)]
        assert all(isinstance(each, RejectedRows) for each in found)
        reasons.append([each.reason for each in found])
    assert reasons[0] == reasons[1]
    for reason, (_, expected) in zip(reasons[0], contents.values(), strict=True):
        assert expected in reason
        assert "0x" not in reason


def test_unread_columns_may_differ(store, tmp_path):
    pixels = images(40)
    forms = {
        "a": pa.array([each.tobytes() for each in pixels], pa.binary(64)),
        "b": pa.array([png(each) for each in pixels], pa.binary_view()),
        "c": pa.array([png(each) for each in pixels], pa.large_binary()),
        "d": pa.array(pixels.reshape(40, -1).tolist(), pa.list_(pa.int64())),
    }
    folder_of = tmp_path / "in"
    folder_of.mkdir()
    for name, column in forms.items():
        customer = pa.array(range(40), pa.int64())
        columns = {"image": column, "customer": customer, f"only_{name}": customer}
        order = sorted(columns, reverse=name in "bd")
        schema = pa.schema(
            [pa.field(each, columns[each].type, nullable=name in "ac") for each in order]
        )
        table = pa.table([columns[each] for each in order], schema=schema)
        pq.write_table(table, folder_of / (f"{name}.parquet" if name != "c" else "c"))
    done = scored(store, input=folder_of, keep=("customer",))
    found = rows(store, done)
    assert found["customer"].to_pylist() == [*range(40)] * 4
    first = found.slice(0, 40).drop_columns(["example_id"])
    for number in range(1, 4):
        assert found.slice(number * 40, 40).drop_columns(["example_id"]) == first


def test_day_without_rows_is_an_empty_job(store, tmp_path):
    parquet(tmp_path / "a.parquet", images()[:0])
    np.savez(tmp_path / "b.npz", images=images()[:0])
    for name in ("a.parquet", "b.npz"):
        for output in (None, str(tmp_path / f"out-{name}")):
            done = scored(store, input=tmp_path / name, output=output)
            assert (done.rows, done.written, done.quarantined) == (0, 0, 0)
    assert pq.read_table(tmp_path / "out-a.parquet").num_rows == 0
    assert "prob_0" in pq.read_table(tmp_path / "out-a.parquet").column_names
    assert {row["rows"] for row in store.read_table("score_jobs").to_pylist()} == {0}


def test_scored_labels_are_class_numbers(tmp_path):
    arrays = tiny(train=60, test=20, shape=(8, 8, 1), classes=2)
    names = np.array([3, 8])
    path = write_npz(
        tmp_path / "a.npz",
        arrays,
        y_train=names[arrays.train_labels],
        y_test=names[arrays.test_labels],
    )
    store = Store(tmp_path / "store")
    retrain(run_config(path), store.root)
    for labels in ([3, 8, 5, -1, None], ["3", "8", "five", "", None]):
        column = [each.tobytes() for each in arrays.test_images[:5]]
        table = pa.table({"image": pa.array(column, pa.binary(64)), "label": pa.array(labels)})
        pq.write_table(table, tmp_path / "in.parquet")
        done = scored(store, input=tmp_path / "in.parquet")
        assert rows(store, done)["label"].to_pylist() == [0, 1, None, None, None]
