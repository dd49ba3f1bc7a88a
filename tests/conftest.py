"""Shared fixtures: small datasets, trained stores, servers."""

import fcntl
import gc
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
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


def pytest_collection_finish() -> None:
    """Exempt all that was imported from the garbage collector, as `gc_paused` does.

    Keras collects garbage before it builds a model, which took as long as to build a small one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small learnable dataset: three classes of 8×8 grayscale images, as an .npz."""
    return write_small_dataset(
        tmp_path_factory.mktemp("small"), classes=3, shape=(8, 8, 1), train=120, test=45
    )


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, small_config: RunConfig) -> Store:
    """A store with one run of `small_config`; do not modify it."""
    from nnbuild.pipeline.run import retrain

    root = tmp_path_factory.mktemp("small-run") / "store"
    retrain(small_config, root)
    return Store(root)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, small_folder: Path) -> Path:
    """Root of a store with a champion; do not modify it."""
    from nnbuild.pipeline.run import retrain

    root = tmp_path_factory.mktemp("trained") / "store"
    retrain(run_config(small_folder, training={"epochs": 2}), root)
    return root


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Store:
    """A writable copy of the store with a champion."""
    return Store(shutil.copytree(trained, tmp_path / "store"))


@pytest.fixture(scope="session")
def _three_runs(
    tmp_path_factory: pytest.TempPathFactory, small_folder: Path
) -> tuple[Path, list[str]]:
    from nnbuild.pipeline.run import retrain

    root = tmp_path_factory.mktemp("gated") / "store"
    good = {"training": {"epochs": 30, "learning_rate": 0.02}}
    configs = [run_config(small_folder), run_config(small_folder, **good), run_config(small_folder)]
    return root, [retrain(each, root).run_id for each in configs]


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
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Prefect with an empty database, to be copied: to make it takes 5 s.

    The workers of a test run share it; the first one makes it.
    """
    from real_server import create_database

    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prefect-home"
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            unfinished = Path(tempfile.mkdtemp(dir=home.parent))
            create_database(unfinished)
            unfinished.rename(home)
    return home


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


@pytest.fixture(scope="module")
def real_prefect(
    prefect_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Server]":
    """A real Prefect server for the file, for schedules, workers and pages."""
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
