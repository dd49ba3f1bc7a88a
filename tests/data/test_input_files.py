"""Which files are read: the same for training and scoring, never one that could block."""

import json
import os
import socket

import numpy as np
import pytest
from command_line import call
from data_files import png, tiny, write_npz, write_parquet, write_pictures
from score_data import images, parquet, scored

from nnbuild.config import loading
from nnbuild.data import archives, file_tree, preprocessing, sources
from nnbuild.data.formats import find_stream, is_there, open_stream
from nnbuild.data.locations import locate
from nnbuild.data.options import ReadOptions
from nnbuild.data.streams import RejectedRows, StreamOptions
from nnbuild.errors import ConfigError, DataError, InputError

SHAPE = (6, 6, 1)


def load(path, **options):
    return sources.load(
        str(path), data_dir=None, cache=path / "cache", options=ReadOptions(**options)
    )


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder) -> list[str]:
    return [file.name for file in file_tree.files_below(folder)]


@pytest.mark.parametrize("address", ["in", "in/*", "*/b", "in/a.png"])
def test_files_are_the_same_after_a_journey_through_json(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b/c.PNG", "b/d", os.fsdecode(b"b/\xe9.jpg")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    files = locate(address).files
    again = file_tree.files_from_json(json.loads(json.dumps(file_tree.files_as_json(files))))
    expected = [(str(file), file.name, file.path) for file in files]
    assert expected
    for each in (again, again[:], [again[place] for place in range(len(again))]):
        assert [(str(file), file.name, file.path) for file in each] == expected
    assert file_tree.names_of(again) == file_tree.names_of(files)
    assert file_tree.suffixes_of(again) == file_tree.suffixes_of(files)
    assert ".png" in file_tree.suffixes_of(files)


def pipe(path):
    os.mkfifo(path)


def link_to_pipe(path):
    os.mkfifo(path.with_name(".pipe"))
    path.symlink_to(".pipe")


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def device(path):
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # like /dev/zero
    except PermissionError:
        pytest.skip("only root makes device nodes")


def parquet_files(address):
    match = find_stream(locate(address))
    return [file.path for file in match[1]] if match else []


SPECIAL = [pipe, link_to_pipe, unix_socket, device]


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("name", ["f", "x.parquet", "x.npz", "x-images-idx3-ubyte"])
def test_special_input_is_refused(tmp_path, monkeypatch, make, name):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    for given in (tmp_path / name, tmp_path):
        assert "not an ordinary file" in refusal(open_stream, str(given), StreamOptions(SHAPE))
        assert "not an ordinary file" in refusal(load, given)


@pytest.mark.parametrize("make", SPECIAL)
def test_special_file_in_data_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    arrays = tiny()
    write_pictures(tmp_path / "a", arrays.train_images, arrays.train_labels)
    make(tmp_path / "a" / "0" / "x.png")
    write_parquet(tmp_path / "b" / "train.parquet", arrays.train_images, arrays.train_labels)
    make(tmp_path / "b" / "x")
    for folder in ("a", "b"):
        assert "not an ordinary file" in refusal(load, tmp_path / folder)
        assert "not an ordinary file" in refusal(
            open_stream, str(tmp_path / folder), StreamOptions(SHAPE)
        )
    assert "not an ordinary file" in refusal(open_stream, f"{tmp_path}/b/*", StreamOptions(SHAPE))


@pytest.mark.parametrize("make", SPECIAL)
def test_special_config_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "c.toml")
    assert "not an ordinary file" in refusal(loading.read_toml, tmp_path / "c.toml")


def test_open_pipe_is_refused():
    end, other = os.pipe()
    try:
        for name in (f"/proc/self/fd/{end}", f"/dev/fd/{end}"):
            assert "a named pipe" in refusal(open_stream, name, StreamOptions(SHAPE))
            assert "a named pipe" in refusal(load, file_tree.Path(name))
    finally:
        os.close(end)
        os.close(other)


def test_file_of_claimed_size_0_is_not_read(tmp_path):
    assert "not an ordinary file" not in refusal(load, file_tree.Path("/proc/self/mem"))
    (tmp_path / "c.toml").touch()
    assert loading.read_toml(tmp_path / "c.toml") == {}


def test_special_file_is_an_error_of_cli(capfd, tmp_path, trained):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "m.onnx")
    inputs = parquet(tmp_path / "in.parquet")
    model = ["--model", tmp_path / "m.onnx", "--digest", "0" * 64]
    for arguments in (
        ["score", "--input", tmp_path / "pipe"],
        ["score", "--input", inputs, *model],
        ["run", "--config", tmp_path / "pipe"],
        ["sweep", "--config", tmp_path / "pipe"],
        ["serve", "--plan", tmp_path / "pipe"],
    ):
        outcome = call(capfd, *arguments, "--store", trained)
        assert outcome.code == 2, arguments
        assert "a named pipe, not a" in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1


def test_hidden_names_are_ignored(tmp_path):
    kept = ["a/b.png", "a-b/c.png", "a.png", "b/Thumbs.db.png"]
    ignored = [
        "._a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "_SUCCESS",
        "_temporary/0/task/part-0.png",
        "a/_delta_log/0.json",
        "b/Thumbs.db",
        "b/desktop.ini",
        "b/THUMBS.DB",
    ]
    for name in kept + ignored:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert names(tmp_path) == sorted(kept)
    assert min(kept) == "a-b/c.png"  # as text: `-` is before `/`
    hidden = tmp_path / "_own"
    hidden.mkdir()
    (hidden / "a.png").touch()
    assert names(hidden) == ["a.png"]  # an explicit folder is never ignored


def test_one_tree_is_walked_alike(tmp_path):
    arrays = tiny(train=24, classes=2)
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write_pictures(data, arrays.train_images[:16], arrays.train_labels[:16])
    write_pictures(elsewhere, arrays.train_images[16:], arrays.train_labels[16:])
    (data / "0" / "more").symlink_to(elsewhere / "0")
    (data / "1" / "one.png").symlink_to(elsewhere / "1" / "00001.png")
    (data / "0" / "again").symlink_to(data)
    for name in ("0/.ipynb_checkpoints", "1/_old"):
        (data / name).mkdir()
        (data / name / "x.png").write_bytes(png(arrays.test_images[0]))
    (data / "1" / "Thumbs.db").write_bytes(b"x")
    dataset = load(data)
    trained_on = np.concatenate([dataset.train.images, dataset.test.images])
    source = open_stream(str(data), StreamOptions(SHAPE))
    read = [rows for chunk in source.chunks() for rows in source.read(chunk, 100)]
    assert not any(isinstance(each, RejectedRows) for each in read)
    found = np.concatenate([rows.images for rows in read])
    assert sorted(map(bytes, found)) == sorted(map(bytes, trained_on))
    assert len(found) == 16 + 4 + 1


def test_links_are_followed_without_loops(tmp_path):
    (tmp_path / "lake" / "day1").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.png").touch()
    (tmp_path / "lake" / "day1" / "a.png").touch()
    (tmp_path / "lake" / "day2").symlink_to(tmp_path / "other")
    (tmp_path / "lake" / "day1" / "up").symlink_to("..")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "lake" / "day1")
    assert names(tmp_path / "lake") == ["day1/a.png", "day2/b.png", "day2/back/a.png"]


@pytest.mark.parametrize("target", ["nowhere", "x.png"])
def test_link_to_nowhere_is_named(tmp_path, target):
    write_pictures(tmp_path / "a", tiny().train_images, tiny().train_labels)
    (tmp_path / "a" / "0" / "x.png").symlink_to(target)
    for function in (load, lambda path: open_stream(str(path), StreamOptions(SHAPE))):
        assert "x.png: a broken link" in refusal(function, tmp_path / "a")


def test_file_that_links_to_itself_is_named(tmp_path):
    path = tmp_path / "x.png"
    path.symlink_to("x.png")
    for function in (preprocessing.read, archives.open_regular, archives.require_regular):
        assert "x.png: a link that leads back to itself" in refusal(function, path)


def test_snapshot_of_links_is_read(tmp_path):
    """The cache of Hugging Face's hub has links out of the folder, to files without suffix."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc" / "data"
    arrays = tiny()
    write_parquet(blobs / "0f3a", arrays.train_images, arrays.train_labels, "hugging_face")
    snapshot.mkdir(parents=True)
    (snapshot / "train-00000-of-00001.parquet").symlink_to(blobs / "0f3a")
    dataset = load(snapshot.parent)
    assert len(dataset.train) + len(dataset.test) == 40
    assert len(parquet_files(str(snapshot.parent))) == 1


def test_leftovers_are_not_scored(store, tmp_path):
    folder = tmp_path / "in"
    for name in (
        "part-0.parquet",
        "_temporary/0/task_1/part-1.parquet",
        ".ipynb_checkpoints/part-0-checkpoint.parquet",
        "day=2/_delta_log/0.checkpoint.parquet",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet(folder / name)
    assert scored(store, input=folder).rows == len(images())
    assert scored(store, input=f"{folder}/**/*.parquet").rows == len(images())
    assert scored(store, input=f"{folder}/*").rows == len(images())
    assert scored(store, input=folder / "_temporary").rows == len(images())
    assert scored(store, input=f"{folder}/_*/**/*.parquet").rows == len(images())


@pytest.mark.parametrize("address", ["_x.parquet", "_x*.parquet", ".y/*.parquet", "[_]x.parquet"])
def test_explicit_hidden_names_count(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".y").mkdir()
    parquet(tmp_path / "_x.parquet")
    parquet(tmp_path / ".y" / "z.parquet")
    expected = 0 if address == "[_]x.parquet" else 1
    assert len(parquet_files(address)) == expected
    assert len(parquet_files(str(tmp_path / address))) == expected


def test_order_is_that_of_paths_as_text(tmp_path):
    for name in ("b/0.parquet", "b-1.parquet", "a.parquet", "B.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        parquet(tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in parquet_files(str(tmp_path))]
    assert found == ["B.parquet", "a.parquet", "b-1.parquet", "b/0.parquet"]
    assert found == [
        path.relative_to(tmp_path).as_posix() for path in parquet_files(f"{tmp_path}/**")
    ]


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([0, 2], "train-00001-of-00003"),
        ([1], "train-00000-of-00003"),
        ([0, 1], "train-00002-of-00003"),
        ([0, 1, 2], None),
        ([1, 2, 3], None),
    ],
)
def test_missing_shards_are_named(tmp_path, present, missing):
    arrays = tiny()
    for number in present:
        path = tmp_path / f"train-{number:05}-of-00003.parquet"
        write_parquet(path, arrays.train_images, arrays.train_labels)
    one = tmp_path / f"train-{present[0]:05}-of-00003.parquet"
    assert len(parquet_files(str(one))) == 1
    assert len(parquet_files(f"{tmp_path}/train-*-of-00003.parquet")) == len(present)
    for address in (str(tmp_path), f"{tmp_path}/*.parquet"):
        if missing:
            assert f"missing {tmp_path if '*' in address else ''}" in refusal(
                parquet_files, address
            )
            assert missing in refusal(parquet_files, address)
        else:
            assert len(parquet_files(address)) == len(present)
    if missing:
        assert missing in refusal(load, tmp_path)


def test_two_shard_counts_are_refused(tmp_path):
    arrays = tiny()
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        write_parquet(tmp_path / f"{name}.parquet", arrays.train_images, arrays.train_labels)
    assert "00001 and of 00002" in refusal(load, tmp_path)
    many = ["x-00000-of-999999999.parquet"]
    assert "and 999999995 more" in refusal(file_tree.require_all_shards, many, "a")


def test_files_of_other_kinds_are_named(store, tmp_path):
    from PIL import Image

    folder = tmp_path / "in"
    folder.mkdir()
    for number, each in enumerate(images(4)):
        Image.fromarray(each[..., 0]).save(folder / f"{number}.png")
    for name in ("scan.tif", "anim.gif", "web.jfif", "notes.txt", "noending"):
        (folder / name).write_bytes(b"x")
    named = (
        r"5 file\(s\) that are not pictures: anim.gif, noending, notes.txt, scan.tif, web.jfif; "
        r"expected files that end in .*\(\.gif too with dataset.image_size"
    )
    with pytest.raises(DataError, match=named):
        scored(store, input=folder)
    done = scored(store, input=folder, on_error="quarantine")
    assert (done.rows, done.quarantined) == (4, 5)


def test_training_can_skip_other_files(tmp_path):
    write_pictures(tmp_path, tiny().train_images, tiny().train_labels)
    (tmp_path / "0" / "notes.txt").write_text("x")
    (tmp_path / "1" / "a.tif").write_text("x")
    assert "notes.txt: not a picture" in refusal(load, tmp_path)
    dataset = load(tmp_path, skip_other_files=True)
    assert len(dataset.train) + len(dataset.test) == 40
    assert "2 file(s) that are not pictures skipped" in dataset.source


def test_parquet_with_pictures_is_refused(tmp_path):
    arrays = tiny()
    write_pictures(tmp_path, arrays.train_images, arrays.train_labels)
    write_parquet(tmp_path / "train.parquet", arrays.train_images, arrays.train_labels)
    assert "contains both Parquet files (train.parquet) and pictures" in refusal(load, tmp_path)
    for address, verb in ((tmp_path, "contains"), (tmp_path / "*", "matches")):
        assert f"{verb} both Parquet files" in refusal(
            open_stream, str(address), StreamOptions(SHAPE)
        )


def test_remote_folder_has_the_same_rules(s3_store, tmp_path):
    import boto3

    parquet(tmp_path / "x.parquet")
    bucket = s3_store.removeprefix("s3://").partition("/")[0]
    client = boto3.client("s3")
    for key in (
        "in/part-0.parquet",
        "in/b/part-1.parquet",
        "in/b-1/part-2",
        "in/_temporary/0/part-1.parquet",
        "in/_delta_log/00000000000000000010.checkpoint.parquet",
        "in/.ipynb_checkpoints/part-0.parquet",
        "in/_SUCCESS",
    ):
        client.upload_file(str(tmp_path / "x.parquet"), bucket, key)
    client.put_object(Bucket=bucket, Key="in/empty/", Body=b"")
    client.close()
    found = [path.path for path in parquet_files(f"s3://{bucket}/in")]
    assert found == [
        f"{bucket}/in/b-1/part-2",
        f"{bucket}/in/b/part-1.parquet",
        f"{bucket}/in/part-0.parquet",
    ]
    for pattern, count in (("in/*.parquet", 1), ("in/**/*.parquet", 2), ("in/_*/**/*.parquet", 2)):
        assert len(parquet_files(f"s3://{bucket}/{pattern}")) == count, pattern


LONG = "x" * 300


@pytest.mark.parametrize("name", [LONG, f"{LONG}.npz", f"{LONG}.parquet", f"{LONG}/*.parquet"])
def test_impossible_names_do_not_exist(tmp_path, name):
    assert "no such" in refusal(open_stream, str(tmp_path / name), StreamOptions(SHAPE))
    assert "no such" in refusal(load, tmp_path / name)


def test_long_names_on_the_command_line(capfd, tmp_path, trained):
    inputs = parquet(tmp_path / "in.parquet")
    for arguments in (
        ["score", "--input", LONG],
        ["score", "--input", inputs, "--model", LONG],
        ["score", "--input", "{date}" + LONG, "--from", "2026-01-01", "--to", "2026-01-02"],
        ["run", "--config", LONG],
        ["score", "--input", inputs, "--store", LONG],
    ):
        store = [] if "--store" in arguments else ["--store", trained]
        outcome = call(capfd, *arguments, *store)
        assert outcome.code == 2, arguments
        assert len(outcome.err.strip().splitlines()) == 1
        assert "traceback" not in outcome.err


@pytest.mark.parametrize("text", ["seed = " + "9" * 5000, "seed = 0x" + "f" * 5000])
def test_too_long_numbers_are_named(tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError):
        loading.parse_config(loading.read_toml(tmp_path / "c.toml"))
    with pytest.raises(ConfigError):
        loading.parse_config(loading.parse_setting(text.replace(" ", "")))


def test_damaged_zip_members_are_named(tmp_path):
    import zipfile

    write_npz(tmp_path / "a.npz", tiny())
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{method}.npz"
        with zipfile.ZipFile(tmp_path / "a.npz") as given, zipfile.ZipFile(path, "w") as made:
            for member in given.namelist():
                made.writestr(member, given.read(member), method)
            start = made.getinfo("x_train.npy").header_offset
        assert len(load(path).train) == 40
        content = bytearray(path.read_bytes())
        for place in range(start + 60, start + 600, 7):
            content[place] ^= 0x55
        path.write_bytes(content)
        assert str(path) in refusal(load, path)


def test_leftovers_alone_are_no_input(tmp_path):
    (tmp_path / "day").mkdir()
    for name in ("_SUCCESS", ".DS_Store", "Thumbs.db"):
        (tmp_path / "day" / name).touch()
    assert not is_there(str(tmp_path / "day"))
    assert not is_there(f"{tmp_path}/*/*.parquet")
    assert not is_there(str(tmp_path / LONG))
    parquet(tmp_path / "day" / "a-00000-of-00002.parquet")
    for address in (tmp_path / "day", f"{tmp_path}/*/*.parquet"):
        assert is_there(str(address))  # the error is raised when it is opened
