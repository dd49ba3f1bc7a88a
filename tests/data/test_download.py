"""Downloads from a server of this process: resumed, verified, and atomic."""

import fcntl
import socket
import threading
from pathlib import Path

import pytest
from data_files import serving

from nnbuild.data.download import UnavailableError, fetch
from nnbuild.errors import DataError

BODY = bytes(range(256)) * 4096  # 1 MiB
FILES = {"/file": BODY}


def sound(path: Path) -> None:
    if path.read_bytes() != BODY:
        raise DataError("another content")


def get(server, target, *, path="/file", progress=None, timeout=5.0):
    fetch(server.address + path, target, sound, progress=progress, timeout=timeout)


def refused(server, target, **options) -> str:
    with pytest.raises(UnavailableError) as caught:
        get(server, target, **options)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def test_a_file_arrives_whole_and_alone(tmp_path):
    seen = []
    target = tmp_path / "cache" / "file"
    with serving(FILES) as server:
        get(server, target, progress=lambda *told: seen.append(told))
        get(server, target)
    assert target.read_bytes() == BODY
    assert names(target.parent) == ["file"]
    assert len(server.requests) == 1  # the second call finds the file
    assert seen[-1] == ("file", len(BODY), len(BODY))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_resumed(tmp_path, ranges):
    with serving(FILES, ranges=ranges, cut=300_000, cuts=2) as server:
        get(server, tmp_path / "file")
        asked = [header for _, header in server.requests]
    assert (tmp_path / "file").read_bytes() == BODY
    assert asked == [None, "bytes=300000-", "bytes=600000-" if ranges else "bytes=300000-"]


def test_partial_file_is_resumed_later(tmp_path):
    with serving(FILES, cut=100_000) as server:
        assert "connection ended after 300000 of 1048576 bytes" in refused(
            server, tmp_path / "file"
        )
        assert part_of(tmp_path / "file").stat().st_size == 300_000
        server.cut = None
        get(server, tmp_path / "file")
        assert server.requests[-1] == ("/file", "bytes=300000-")
    assert (tmp_path / "file").read_bytes() == BODY
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "leftover", [b"x" * 1000, BODY + b"more", b"x" * len(BODY), BODY[:-1] + b"x"]
)
def test_other_partial_file_is_replaced(tmp_path, leftover):
    part_of(tmp_path / "file").write_bytes(leftover)
    with serving(FILES) as server:
        get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_complete_partial_file_is_used(tmp_path):
    part_of(tmp_path / "file").write_bytes(BODY)
    with serving(FILES) as server:
        get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_damaged_file_is_replaced_last(tmp_path):
    (tmp_path / "file").write_bytes(b"damaged")
    with serving({}) as server:
        with pytest.raises(UnavailableError):
            get(server, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == b"damaged"
        server.files |= FILES
        get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_invalid_download_is_discarded(tmp_path):
    with serving({"/file": b"<html>Please log in</html>"}) as server:
        assert "not the published data (another content)" in refused(server, tmp_path / "file")
        server.files["/file"] = BODY
        get(server, tmp_path / "file")


def test_servers_that_are_absent_say_so(tmp_path):
    with serving({}) as server:
        assert "404" in refused(server, tmp_path / "file")
        address = server.address
    with pytest.raises(UnavailableError, match="refused"):
        fetch(address + "/file", tmp_path / "file", sound, progress=None, timeout=5)
    for url in ("http://[bad/file", "http://127.0.0.1:99999/file", "nonsense", "http://a b/c", ""):
        with pytest.raises(UnavailableError):
            fetch(url, tmp_path / "file", sound, progress=None, timeout=5)


def test_a_silent_server_times_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
        with pytest.raises(UnavailableError, match="timed out"):
            fetch(url, tmp_path / "file", sound, progress=None, timeout=0.2)


def test_other_schemes_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(BODY)
    with serving(FILES, redirect=f"file://{tmp_path}/secret") as server:
        refused(server, tmp_path / "file")
    for url in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/file", "data:,x"):
        with pytest.raises(UnavailableError):
            fetch(url, tmp_path / "file", sound, progress=None, timeout=5)


def test_impossible_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with serving(FILES) as server, pytest.raises(UnavailableError, match=str(tmp_path)):
        get(server, tmp_path / "file" / "below")


def test_parallel_downloads_all_succeed(tmp_path):
    failures = []

    def one(server):
        try:
            get(server, tmp_path / "file")
        except DataError as error:
            failures.append(error)

    with serving(FILES, cut=400_000, cuts=3) as server:
        threads = [threading.Thread(target=one, args=(server,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert (tmp_path / "file").read_bytes() == BODY
    assert names(tmp_path) == ["file"]


def test_locked_partial_file_is_left_alone(tmp_path):
    part = part_of(tmp_path / "file")
    with part.open("wb") as held, serving(FILES) as server:
        held.write(b"being written")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        get(server, tmp_path / "file")
        assert part.read_bytes() == b"being written"
    assert (tmp_path / "file").read_bytes() == BODY
    assert names(tmp_path) == [part.name, "file"]
