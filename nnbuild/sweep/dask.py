"""A Dask cluster that trials are made on: looked at before the sweep begins."""

from typing import Any

from nnbuild.errors import ConfigError
from nnbuild.scoring.dask import connect
from nnbuild.sweep.sweep import Sweep


def workers_of(sweep: Sweep, address: str) -> int:
    """How many trials a cluster can make at a time: one for each worker.

    Args:
        sweep: whose store is a folder that the workers see under the same path.
        address: of the scheduler, such as `tcp://127.0.0.1:8786`.

    Raises:
        ConfigError: nobody answers there, Dask is not installed, there is no worker, a worker has several threads, or
            the store is not shared with the workers.
    """
    if sweep.store.is_remote:
        raise ConfigError(
            "--runner dask needs a store in a folder that all workers see; give --store of a folder"
        )
    with connect(address) as client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ConfigError(
            f"--address {address}: the cluster has no workers; start `dask worker {address} --nthreads 1`"
        )
    if any(each["nthreads"] > 1 for each in workers.values()):
        # Seeds and threads are global to a process: two fits in one would change each other's results.
        raise ConfigError(
            f"--address {address}: a worker has several threads; start each with --nthreads 1"
        )
    return len(workers)
