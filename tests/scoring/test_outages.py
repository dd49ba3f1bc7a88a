"""Scoring while the machine fails: no row is called bad, and no finished shard is lost."""

import errno
import os

import numpy as np
import pyarrow as pa
import pytest
from command_line import call
from kills import killed_at
from PIL import Image, ImageFile
from score_data import ROWS, files, images, parquet, rows, scored

import nnbuild
from nnbuild.data import archives, parquet_files
from nnbuild.data.formats import open_stream
from nnbuild.data.parquet_files import ParquetFiles
from nnbuild.data.parquet_layout import Layouts
from nnbuild.data.parquet_stream import ParquetStream
from nnbuild.data.streams import RejectedRows, StreamOptions
from nnbuild.errors import DataError, RunError, StoreError
from nnbuild.scoring.config import ScoreConfig

OUTAGES = [errno.EIO, errno.ECONNRESET]


@pytest.fixture(params=["parquet", "pictures"])
def source(request, tmp_path):
    """An input of each kind: a table, and a folder of pictures."""
    if request.param == "parquet":
        return parquet(tmp_path / "in.parquet")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, each in enumerate(images()):
        Image.fromarray(each[..., 0]).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def failing(monkeypatch):
    """Return a function that makes every read fail after the first so many."""

    def fail(error, *, after):
        left = [after]

        def wrap(owner, name):
            original = getattr(owner, name)

            def read_or_fail(*arguments, **named):
                if left[0] <= 0:
                    raise error
                left[0] -= 1
                return original(*arguments, **named)

            monkeypatch.setattr(owner, name, read_or_fail)

        wrap(archives, "open_checked")
        wrap(ParquetFiles, "get")

    yield fail
    monkeypatch.undo()


@pytest.mark.parametrize("on_error", ["stop", "quarantine"])
@pytest.mark.parametrize("kind", OUTAGES, ids=errno.errorcode.get)
def test_outage_keeps_the_job(store, source, failing, monkeypatch, kind, on_error):
    options = {"input": str(source), "batch_size": 32, "shard_rows": 60, "on_error": on_error}
    straight = scored(store, **options)
    failing(OSError(kind, os.strerror(kind)), after=3 if source.is_file() else 150)
    with pytest.raises(StoreError, match=os.strerror(kind)) as caught:
        nnbuild.score(ScoreConfig(**options), store.root)
    assert "resume it with" in caught.value.__notes__[0]
    (job,) = (store.root / "staging").glob("score-*/")
    finished = {each.name: each.stat().st_ino for each in (job / "rows").glob("part-*")}
    assert len(finished) == source.is_file()  # the pictures make one shard
    monkeypatch.undo()
    again = nnbuild.score(ScoreConfig(**options), store.root)
    assert files(store, again.score_id) == files(store, straight.score_id)
    folder = store.root / "tables" / "scores" / f"score_id={again.score_id}"
    assert all((folder / name).stat().st_ino == inode for name, inode in finished.items())


@pytest.mark.parametrize("on_error", ["stop", "quarantine"])
def test_missing_memory_keeps_the_job(store, source, monkeypatch, on_error):
    def fail(*_arguments, **_named):
        raise pa.ArrowMemoryError("malloc of size 1073741824 failed")

    # Pillow decodes pictures with transparency.
    if source.is_dir():
        Image.new("LA", (8, 8), (7, 255)).save(source / "100.png")
        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    else:
        monkeypatch.setattr(Layouts, "names", fail)
    options = {"input": str(source), "batch_size": 32, "shard_rows": 60, "on_error": on_error}
    with pytest.raises((RunError, StoreError), match="memory") as caught:
        nnbuild.score(ScoreConfig(**options), store.root)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    done = nnbuild.score(ScoreConfig(**options), store.root)
    assert f"--resume {done.score_id}" in caught.value.__notes__[0]
    assert (done.rows, done.quarantined) == (ROWS, 0)


def test_bad_row_after_a_stop_keeps_the_finished_shards(store, tmp_path, monkeypatch):
    options = {"input": str(parquet(tmp_path / "in.parquet")), "batch_size": 32, "shard_rows": 60}
    read = ParquetStream._rows

    def stop(error):
        def rows_before_100(self, batch, chunk, first):
            if first >= 100:
                raise error
            return read(self, batch, chunk, first)

        monkeypatch.setattr(ParquetStream, "_rows", rows_before_100)

    for error in (StoreError("unplugged"), DataError("bad")):
        stop(error)
        with pytest.raises(type(error)):
            nnbuild.score(ScoreConfig(**options), store.root)
        assert list((store.root / "staging").glob("score-*/done/*"))


def test_deleted_table_is_quarantined_like_a_picture(store, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        parquet(folder / f"{name}.parquet")
    opened = parquet_files.open_file

    def open_and_delete(path):
        if path.name == "b.parquet" and opens.append(path) is None and len(opens) > 1:
            path.unlink(missing_ok=True)
        return opened(path)

    opens = []
    monkeypatch.setattr(parquet_files, "open_file", open_and_delete)
    done = scored(store, input=folder, on_error="quarantine", shard_rows=1000)
    assert (done.rows, done.quarantined) == (ROWS, ROWS)
    assert rows(store, done)["example_id"].to_pylist() == list(range(ROWS))


def test_file_that_does_not_open_spoils_no_other(tmp_path, monkeypatch):
    for name in "ab":
        parquet(tmp_path / f"{name}.parquet", images(20), group=10)
    source = open_stream(str(tmp_path), StreamOptions((8, 8, 1)))
    chunks, opened = source.chunks(), parquet_files.open_file
    list(source.read(chunks[0], 64))

    def fail(_path):
        raise ValueError("no footer")

    monkeypatch.setattr(parquet_files, "open_file", fail)
    (rejected,) = source.read(chunks[2], 64)
    assert isinstance(rejected, RejectedRows)
    monkeypatch.setattr(parquet_files, "open_file", opened)
    (batch,) = source.read(chunks[1], 64)
    np.testing.assert_array_equal(batch.images, images(20)[10:])


@pytest.mark.parametrize("on_error", ["stop", "quarantine"])
def test_unmounted_folder_keeps_the_job(store, source, monkeypatch, on_error):
    """It is gone, or empty, after the first picture or row group."""
    folder = source if source.is_dir() else source.parent / "tables"
    if source.is_file():
        folder.mkdir()
        for name in "ab":
            parquet(folder / f"{name}.parquet")
    options = {"input": str(folder), "batch_size": 32, "shard_rows": 60, "on_error": on_error}
    straight = scored(store, **options)
    opened, opens = (parquet_files.open_file, archives.open_checked), []

    def disappear(number):
        def open_once(*arguments):
            opens.append(1)
            if len(opens) == 4:  # after the two footers and the first table, or three pictures
                folder.rename(folder.with_name("elsewhere"))
                folder.mkdir()
            return opened[number](*arguments)

        return open_once

    monkeypatch.setattr(parquet_files, "open_file", disappear(0))
    monkeypatch.setattr(archives, "open_checked", disappear(1))
    with pytest.raises(StoreError, match="missing or empty since it was listed"):
        nnbuild.score(ScoreConfig(**options), store.root)
    monkeypatch.undo()
    folder.rmdir()
    folder.with_name("elsewhere").rename(folder)
    again = nnbuild.score(ScoreConfig(**options), store.root)
    assert files(store, again.score_id) == files(store, straight.score_id)
    assert not list((store.root / "staging").glob("score-*/"))


@pytest.mark.parametrize("answers", [True, False])
def test_object_of_a_dead_server_is_not_called_missing(tmp_path, monkeypatch, answers):
    """The file systems of fsspec say that an object is missing if their server does not answer."""
    from upath import UPath

    fs = UPath("memory://outages").fs
    fs.pipe_file("/outages/in.parquet", parquet(tmp_path / "in.parquet").read_bytes())
    source = open_stream("memory://outages/in.parquet", StreamOptions((8, 8, 1)))
    chunk = source.chunks()[0]
    monkeypatch.setattr(type(fs), "isfile", lambda *_: False)
    if not answers:
        error = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        monkeypatch.setattr(type(fs), "info", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(StoreError, match="did not answer" if answers else "refused"):
        list(source.read(chunk, 64))
    monkeypatch.undo()
    fs.rm("/outages/in.parquet")
    (rejected,) = source.read(chunk, 64)
    assert rejected.reason == "no such file"


def test_stopped_job_is_resumed_with_fewer_threads(store, tmp_path, capfd):
    options = {"input": str(parquet(tmp_path / "in.parquet")), "batch_size": 32, "shard_rows": 60}
    straight = scored(store, **options)
    with killed_at("shard:done"):
        nnbuild.score(ScoreConfig(**options, threads=2), store.root)
    (waiting,) = (store.root / "staging").glob("score-*")
    again = nnbuild.score(ScoreConfig(**options, threads=1), store.root)
    assert waiting.name == f"score-{again.score_id}"
    assert files(store, again.score_id) == files(store, straight.score_id)
    with killed_at("shard:done"):
        nnbuild.score(ScoreConfig(**options), store.root)
    (waiting,) = (store.root / "staging").glob("score-*")
    given = ["score", "--resume", waiting.name.removeprefix("score-"), "--store", store.root]
    outcome = call(capfd, *given, "--threads", 0)
    assert (outcome.code, "expected at least 1 (option --threads)" in outcome.err) == (2, True)
    outcome = call(capfd, *given, "--threads", 1)
    assert outcome.code == 0, outcome.err
