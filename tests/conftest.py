"""Shared fixtures: small datasets, trained stores, servers."""

import fcntl
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from real_server import Server
    from s3_server import Service

os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

# Prefect's logging setup closes existing handlers, and TensorFlow's handler keeps the stream that
# pytest captures during its import: import Prefect first.
import prefect.main  # noqa: F401
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from small_data import run_config, write_small_dataset

from nnbuild.config.schema import RunConfig
from nnbuild.store import Store


@pytest.fixture(scope="session")
def small_folder(made_once: Callable[..., Path]) -> Path:
    """A small learnable dataset: three classes of 8×8 grayscale images, as an .npz."""

    def fill(folder: Path) -> None:
        write_small_dataset(folder, classes=3, shape=(8, 8, 1), train=120, test=45)

    return made_once("small", fill) / "small.npz"


@pytest.fixture
def small_config(small_folder: Path) -> RunConfig:
    """Settings of a run that takes a second: the lab network on the small dataset."""
    return RunConfig.model_validate(
        {
            "dataset": {"name": str(small_folder)},
            "model": {"name": "lab"},
            "training": {"epochs": 3, "batch_size": 16, "threads": 2},
            "seed": 7,
        }
    )


_LONG = ("e2e", "training", "flows", "test_documents.py")
"""Folders and files with the tests that take longest."""


def pytest_configure(config: pytest.Config) -> None:
    """Let the workers of a test run take the files in the order of `pytest_collection_modifyitems`.

    pytest-xdist would start with the files that have most tests, and end with long ones.
    """
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: not {*item.path.parts}.isdisjoint(_LONG), reverse=True)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a folder once for all workers of a test run.

    It takes the name of the folder and a function that fills it; the other workers wait for it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder = base / "made-once" / name
        folder.parent.mkdir(exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def trained(made_once: Callable[..., Path], small_folder: Path) -> Path:
    """Root of a store with a champion; do not modify it."""
    from nnbuild.pipeline.run import retrain

    config = run_config(small_folder, training={"epochs": 2})
    return made_once("trained", lambda folder: retrain(config, folder / "store")) / "store"


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Store:
    """A writable copy of the store with a champion."""
    return Store(shutil.copytree(trained, tmp_path / "store"))


@pytest.fixture(scope="session")
def _three_runs(made_once: Callable[..., Path], small_folder: Path) -> tuple[Path, list[str]]:
    from nnbuild.pipeline.run import retrain

    good = {"training": {"epochs": 30, "learning_rate": 0.02}}

    def fill(folder: Path) -> None:
        for changes in ({}, good, {}):
            retrain(run_config(small_folder, **changes), folder / "store")

    root = made_once("gated", fill) / "store"
    return root, Store(root).run_ids()


@pytest.fixture
def gated_runs(
    _three_runs: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, list[str]]:
    """A writable store with three runs: a bad one, a much better one, and another bad one."""
    root, runs = _three_runs
    return Store(shutil.copytree(root, tmp_path_factory.mktemp("gated") / "store")), runs


@pytest.fixture(scope="session")
def s3_service() -> Iterator["Service"]:
    """An S3 server for the session, because file systems are cached with its address."""
    pytest.importorskip("moto")
    from s3_server import Service

    service = Service()
    yield service
    service.close()


@pytest.fixture
def s3_store(
    s3_service: "Service", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """URL of a store in an empty bucket."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_service.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NNBUILD_STAGING_DIR", str(tmp_path / "workshop"))
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/store"
    s3_service.answer = lambda method, path: None  # noqa: ARG005
    client.close()


@pytest.fixture
def prefect_server(_prefect_harness: None) -> None:
    """Prefect's test harness, started by the first test of the session that needs it."""


@pytest.fixture(scope="session")
def prefect_home(made_once: Callable[..., Path]) -> Path:
    """A folder of Prefect with an empty database, to be copied: migrations take 5 s to make it."""
    from real_server import create_database

    return made_once("prefect", create_database)


@pytest.fixture(scope="session")
def _prefect_harness(
    prefect_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    from prefect.testing import utilities

    folder = tmp_path_factory.mktemp("prefect")
    shutil.copyfile(prefect_home / "prefect.db", folder / "prefect-test.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        harness = utilities.prefect_test_harness(server_startup_timeout=120)
        # A flow ends when its thread for heartbeats wakes up, up to a second later.
        with harness, temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield


@pytest.fixture(scope="session")
def real_prefect(
    prefect_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Server]":
    """A real Prefect server for the session, for schedules, workers and pages."""
    from real_server import real_server

    home = shutil.copytree(prefect_home, tmp_path_factory.mktemp("prefect") / "home")
    with real_server(home) as found:
        yield found


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """URL of a webhook on loopback, and the list of messages it received."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/broken" else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


@pytest.fixture
def real_mnist() -> Path:
    """Folder with the real MNIST; skips the test if it is unavailable."""
    folder = os.environ.get("NNBUILD_DATA_DIR")
    if not folder or not (Path(folder) / "train-images-idx3-ubyte.gz").exists():
        pytest.skip("NNBUILD_DATA_DIR names no folder with train-images-idx3-ubyte.gz")
    return Path(folder)
