"""Check the Dask cluster that a sweep is to run on, before it begins."""

from typing import Any

from nnbuild.errors import ConfigError
from nnbuild.scoring.dask import connect
from nnbuild.sweep.sweep import Sweep


def workers_of(sweep: Sweep, address: str) -> int:
    """Return how many trials a cluster can run at a time: one for each worker.

    Args:
        sweep: Sweep with a store in a folder that the workers see under the same path.
        address: Address of the scheduler, such as `tcp://127.0.0.1:8786`.

    Raises:
        ConfigError: The scheduler does not answer, Dask is not installed, there is no worker, a
            worker has several threads, or the store is not shared with the workers.
    """
    if sweep.store.is_remote:
        raise ConfigError(
            f"store {sweep.root} is remote, and a sweep on Dask needs a store in a folder that all "
            "workers see; give such a folder"
        )
    with connect(address) as client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ConfigError(
            f"the Dask cluster at {address} has no workers; "
            f"start `dask worker {address} --nthreads 1`"
        )
    if any(each["nthreads"] > 1 for each in workers.values()):
        # Seeds and threads are global to a process: two fits in one would change each other.
        raise ConfigError(
            f"a worker of the Dask cluster at {address} has several threads, expected one; "
            "start each with --nthreads 1"
        )
    return len(workers)
