"""What the tests share: TensorFlow in silence, one Prefect test server for the session, tiny datasets."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

# Prefect's logging setup closes the handlers that stand, and TensorFlow's holds the stream that pytest captures at the
# time of its import: so Prefect comes first.
import prefect.main  # noqa: F401
from small_data import write_small_dataset

from nnbuild.config import RunConfig


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset as a Parquet file would be: three classes of 8×8 grey images that can be learnt."""
    return write_small_dataset(tmp_path_factory.mktemp("small"), classes=3, shape=(8, 8, 1), train=120, test=45)


@pytest.fixture
def small_config(small_folder: Path) -> RunConfig:
    """A run that takes a second: the lab network on the small dataset."""
    return RunConfig.model_validate(
        {
            "dataset": {"name": str(small_folder)},
            "model": {"name": "lab"},
            "training": {"epochs": 3, "batch_size": 16, "threads": 2},
            "seed": 7,
        }
    )


@pytest.fixture
def prefect_server(_prefect_harness: None) -> None:
    """Prefect's test harness, started once for the session by the first test that needs it."""


@pytest.fixture(scope="session")
def _prefect_harness() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def real_mnist() -> Path:
    """The folder with the real MNIST; the test is skipped where there is none."""
    folder = os.environ.get("NNBUILD_DATA_DIR")
    if not folder or not (Path(folder) / "train-images-idx3-ubyte.gz").exists():
        pytest.skip("NNBUILD_DATA_DIR names no folder with train-images-idx3-ubyte.gz")
    return Path(folder)
