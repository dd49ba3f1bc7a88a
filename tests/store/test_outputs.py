"""Test output files: a path keeps its kind, mode and links."""

import contextlib
import io
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import call, tree_digest
from score_data import ROWS, parquet

from nnbuild.errors import NnbuildError, OutputError
from nnbuild.store import Store
from nnbuild.store.outputs import output_file, output_folder, write_output

CONTENT = b"content" * 1000


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail(path):
    with output_file(path) as temporary:
        temporary.write_bytes(CONTENT)
        raise ZeroDivisionError


@pytest.fixture(scope="module")
def shared(tmp_path_factory, trained):
    """A store that is only read, with a folder of inputs beside it."""
    folder = tmp_path_factory.mktemp("outputs")
    parquet(folder / "in.parquet")
    return Store(trained), folder / "in.parquet"


def commands(shared, path):
    store, source = shared
    (run_id,) = store.run_ids()
    return {
        "sql": ["sql", "select run_id from runs", "--parquet", path],
        "trends": ["trends", "--html", path],
        "export": ["export", run_id, "--format", "onnx", "--output", path],
        "savedmodel": ["export", run_id, "--output", path],
        "score": ["score", "--input", source, "--output", path],
    }


def node(mode, major=0, minor=0):
    def make(path):
        try:
            os.mknod(path, mode | 0o666, os.makedev(major, minor))
        except PermissionError:
            pytest.skip("only root may make device nodes")

    return make


def bound_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def dangling(path):
    path.symlink_to(path.parent / "nowhere" / "target")


def loop(path):
    path.symlink_to(path)


def below_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("mine")


SPECIAL = {
    "null": node(stat.S_IFCHR, 1, 3),
    "full": node(stat.S_IFCHR, 1, 7),
    "block device": node(stat.S_IFBLK, 7, 200),
    "pipe without a reader": os.mkfifo,
    "socket": bound_socket,
    "folder with a file": lambda path: (path.mkdir(), (path / "mine").write_text("mine")),
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.p"), path.symlink_to(f"{path}.p")),
    "dangling link": dangling,
    "link to itself": loop,
    "below a file": below_a_file,
}


def kinds(folder):
    return {
        str(path): (stat.S_IFMT(status.st_mode), status.st_rdev)
        for path in folder.rglob("*")
        for status in [path.lstat()]
    }


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("command", ["sql", "trends", "export", "savedmodel", "score"])
def test_output_special_file_is_kept(capfd, tmp_path, monkeypatch, shared, command, special):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = folder / "target"
    SPECIAL[special](path)
    before = kinds(tmp_path)
    store = ("--store", shared[0].root)
    if command == "score":  # what it refuses is refused before anything is written
        digest = tree_digest(shared[0].root)
    outcome = call(capfd, *commands(shared, path)[command], *store)
    if special == "null" and command in {"sql", "trends"}:
        assert outcome.code == 0, outcome.err
    else:
        assert (outcome.code, len(outcome.err.strip().splitlines())) == (2, 1), outcome.err
        assert "report it" not in outcome.err
    assert kinds(tmp_path) == before
    if command == "score":
        assert tree_digest(shared[0].root) == digest


@pytest.mark.parametrize("command", ["sql", "trends", "export"])
@pytest.mark.parametrize(
    "name", ["x" * 300, "new/folder/x.out", "/proc/x.out", "s3://bucket/x.out"], ids=str
)
def test_output_any_path_works_or_one_line(capfd, tmp_path, monkeypatch, shared, command, name):
    monkeypatch.chdir(tmp_path)
    outcome = call(capfd, *commands(shared, name)[command], "--store", shared[0].root)
    if name.startswith("new"):
        assert outcome.code == 0, outcome.err
        assert Path(name).stat().st_size > 0
    else:
        assert (outcome.code, len(outcome.err.strip().splitlines())) == (2, 1)
        assert "report it" not in outcome.err
        assert list(tmp_path.iterdir()) == []


def test_output_longest_name_works(tmp_path):
    path = tmp_path / ("x" * 251 + ".txt")
    write_output(path, CONTENT)
    write_output(tmp_path / ("é" * 127), CONTENT)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("letter", ["a", "é"])
def test_scores_longest_name_works(capfd, tmp_path, store, shared, letter):
    path = tmp_path / "new" / ((letter * 255).encode()[:255].decode(errors="ignore"))
    given = ["score", "--input", shared[1], "--output", path, "--store", store.root]
    assert call(capfd, *given).code == 0
    assert pq.read_table(path).num_rows == ROWS
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize(
    "place", ["x" * 256, "new/" + "x" * 256, "x" * 256 + "/new", "new/" * 1000, "new/" * 1500]
)
def test_scores_name_too_long_is_refused(capfd, tmp_path, monkeypatch, store, shared, place):
    monkeypatch.chdir(tmp_path)
    before = tree_digest(store.root)
    given = ["score", "--input", shared[1], "--output", place, "--store", store.root]
    outcome = call(capfd, *given)
    assert outcome.code == 2
    assert outcome.err.endswith("File name too long; give a shorter name\n")
    assert len(outcome.err.splitlines()) == 1
    assert tree_digest(store.root) == before
    assert names(tmp_path) == ["store"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_output_replaced_keeps_mode(tmp_path, mode):
    path = tmp_path / "page.html"
    path.write_text("old")
    path.chmod(mode)
    write_output(path, CONTENT)
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert names(tmp_path) == ["page.html"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_output_new_follows_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_output(tmp_path / "page.html", CONTENT)
        Store(tmp_path / "store").create()
    finally:
        os.umask(before)
    for path in (tmp_path / "page.html", tmp_path / "store" / "store.json"):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    folder = (tmp_path / "store" / "staging").stat().st_mode
    assert stat.S_IMODE(folder) == mode | (mode & 0o444) >> 2


def test_run_files_follow_umask(tmp_path, small_config):
    import nnbuild

    before = os.umask(0o027)
    try:
        nnbuild.retrain(small_config, tmp_path / "store")
    finally:
        os.umask(before)
    modes = {
        (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
        for path in (tmp_path / "store").rglob("*")
    }
    assert modes == {(True, 0o750), (False, 0o640)}


def test_output_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to("target")
    write_output(link, CONTENT)
    assert link.is_symlink()
    assert target.read_bytes() == CONTENT


def test_output_failure_changes_nothing(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


def test_output_read_only_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(OutputError, match="Permission denied"):
        write_output(path, CONTENT)
    assert path.read_text() == "old"


def test_output_pipe_gets_bytes(tmp_path):
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "rb") as file:
        reader = threading.Thread(target=lambda: got.append(file.read()))
        with output_file(path) as temporary:
            reader.start()
            temporary.write_bytes(CONTENT * 100)
        reader.join()
    assert got == [CONTENT * 100]
    assert path.is_fifo()


@pytest.mark.parametrize("form", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/{pid}/fd/{}"])
def test_output_descriptor_gets_bytes(tmp_path, form):
    kept = tmp_path / "kept"
    with kept.open("wb") as file:
        file.write(b"before ")
        file.flush()
        link = tmp_path / "link"
        link.symlink_to(form.format(file.fileno(), pid=os.getpid()))
        write_output(link, CONTENT)
        file.write(b" after")
    assert kept.read_bytes() == b"before " + CONTENT + b" after"


def test_output_bad_descriptor_refused(tmp_path):
    (tmp_path / "kept").write_text("mine")
    with (tmp_path / "kept").open("rb") as file, pytest.raises(OutputError, match="reading only"):
        write_output(Path(f"/dev/fd/{file.fileno()}"), CONTENT)
    with pytest.raises(OutputError, match="Bad file descriptor"):
        write_output(Path("/dev/fd/9999"), CONTENT)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with (
        other,
        contextlib.closing(other.stdin),
        pytest.raises(OutputError, match=f"open in process {other.pid}"),
    ):
        write_output(Path(f"/proc/{other.pid}/fd/2"), CONTENT)
    assert (tmp_path / "kept").read_text() == "mine"


def test_output_stdout_is_readable(shared):
    code = "import sys; from flows.cli.main import main; main(sys.argv[1:])"
    query = ["sql", "select 1 as a", "--parquet", "/dev/stdout", "--store", str(shared[0].root)]
    done = subprocess.run(
        [sys.executable, "-c", code, *query], capture_output=True, check=True, timeout=300
    )
    assert pq.read_table(io.BytesIO(done.stdout)).to_pylist() == [{"a": 1}]
    assert b"1 rows" in done.stderr


def test_page_stdout_has_nothing_else(capfd, shared):
    outcome = call(capfd, "trends", "--html", "/dev/stdout", "--store", shared[0].root)
    assert outcome.code == 0
    assert outcome.out.startswith("<!doctype html>")
    assert outcome.out.rstrip().endswith("</html>")


def ways_into(root, folder):
    link, other = folder / "link", folder / "elsewhere"
    link.symlink_to(root)
    other.mkdir()
    return [
        root / "out",
        root / "tables" / "scores" / "out",
        link / "out",
        root,
        root.parent / "x" / ".." / root.name / "out",
        Path(os.path.relpath(root, other)) / "out",
        Path(f"/proc/self/root{root}") / "out",
        root.parent,
    ]


@pytest.mark.parametrize("command", ["sql", "trends", "export", "savedmodel", "score"])
def test_output_in_store_is_refused(capfd, tmp_path, monkeypatch, store, shared, command):
    for path in ways_into(store.root, tmp_path):
        monkeypatch.chdir(tmp_path / "elsewhere")
        before = tree_digest(store.root)
        given = commands((store, shared[1]), path)[command]
        outcome = call(capfd, *given, "--store", store.root)
        assert (outcome.code, len(outcome.err.strip().splitlines())) == (2, 1), path
        assert "in the store" in outcome.err
        assert tree_digest(store.root) == before


def test_output_in_remote_store_is_refused(s3_store):
    from nnbuild.store.filesystem import open_root

    store = Store(s3_store)
    bucket = s3_store.rpartition("/")[0]
    for given in (s3_store, f"{s3_store}/tables/x", f"{bucket}/other/../store/x", bucket):
        with pytest.raises(NnbuildError, match="in the store"):
            store.ensure_outside(open_root(given))
    for given in (f"{s3_store}-scores", f"{bucket}/scores", "s3://another/store/x"):
        store.ensure_outside(open_root(given))
    with pytest.raises(NnbuildError, match="in the store"):
        store.ensure_outside(store.local_root / "staging" / "x")


def test_output_folder_is_atomic(tmp_path):
    with output_folder(tmp_path / "new" / "folder") as folder:
        (folder / "a").write_bytes(CONTENT)
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["folder"]
    with pytest.raises(OutputError, match="exists already"), output_folder(tmp_path / "new"):
        pass


def test_scores_link_to_empty_folder_works(capfd, tmp_path, store, shared):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    given = commands((store, shared[1]), tmp_path / "link")["score"]
    outcome = call(capfd, *given, "--store", store.root)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "link").is_symlink()
    assert list((tmp_path / "empty").glob("*.parquet"))
