"""Make the shards of a job on a Dask cluster.

Workers receive the root of the store, the ID of a job and the number of a shard, never arrays.
Each worker opens the job itself, which verifies model and input by their digests, and writes its
shard to the folder of the job. All workers must share that folder: it is below the store, or, for
a store behind a URL, below `$NNBUILD_STAGING_DIR`. If a worker dies, another one makes its shard.
"""

import platform
import queue
import shutil
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nnbuild.errors import ConfigError, Interrupted, RunError, StoreError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.progress import ProgressCallback, RowProgress
from nnbuild.runtime.signals import deferred_signals
from nnbuild.scoring.batch import ShardContext
from nnbuild.scoring.job import Job, shards_of, staging
from nnbuild.scoring.job_shards import job_engine, progress_of, rows_of, shard_context
from nnbuild.scoring.shards import Shard, make_shards
from nnbuild.store import Store, presence
from nnbuild.store.filesystem import make_durable_dir

if TYPE_CHECKING:
    from distributed import Client, Future

_SECONDS_TO_CONNECT = 10
_POLL_SECONDS = 0.2
_SECONDS_FOR_A_SHARD = 60
_STOP = "stop"  # file in the folder of the job; while it exists, no further shard starts


def score_on_cluster(
    job: Job, address: str, progress: ProgressCallback | None = None
) -> list[Shard]:
    """Make the missing shards on the workers of a cluster; see `nnbuild.scoring.job.score_input`.

    Args:
        job: The job; workers see its folder under the same path.
        address: Address of the scheduler, such as `tcp://127.0.0.1:8786`.
        progress: Receives the number of scored rows after each shard.

    Raises:
        ConfigError: No scheduler answers at the address, or Dask is not installed.
        StoreError: A worker does not see the folder of the job.
        RunError: A shard has killed several workers.
        Interrupted: A signal asked to stop; finished shards are kept.
    """
    (job.folder / _STOP).unlink(missing_ok=True)
    done, pending = progress_of(job)
    counter = RowProgress(progress, rows_of(done), job.total)
    make_durable_dir(job.folder / "rows")
    make_durable_dir(job.folder / "quarantine")
    with connect(address) as client, deferred_signals() as stop:
        futures = [
            client.submit(make_shard, str(job.store.root), job.score_id, number, pure=False)
            for number, _ in pending
        ]
        ready: queue.SimpleQueue[Future] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(ready.put)
        try:
            for _ in pending:
                shard = _shard_of(_next_done(ready, stop))
                done.append(shard)
                counter.add(rows_of([shard]))
        except BaseException:
            (job.folder / _STOP).touch()
            _drain(futures)
            raise
        finally:
            client.cancel(futures)
    fault_injection.failpoint("score:shards")
    return sorted(done, key=lambda each: each.name)


def make_shard(root: str, score_id: str, number: int) -> dict[str, Any]:
    """Make one shard of a job on a worker.

    Args:
        root: Root of the store, as the worker sees it.
        score_id: ID of the job.
        number: Number of the shard.

    Returns:
        The fields of its `Shard`; empty if the job is stopping.

    Raises:
        StoreError: This worker does not see the folder of the job.
    """
    folder = staging(Store(root), score_id)
    if not folder.is_dir():
        raise StoreError(
            f"worker {platform.node()} does not see {folder}; share that folder with all workers, "
            "or set $NNBUILD_STAGING_DIR to a shared folder, here and on the workers"
        )
    if (folder / _STOP).exists():
        return {}
    job, context = _open_on_worker(root, score_id, threading.get_ident())
    try:
        with presence.watch(folder):
            results = make_shards(context, [(number, shards_of(job)[number])], job.folder)
            (shard,) = (each for each in results if not isinstance(each, int))
            return shard.model_dump()
    finally:
        # If the record is missing, another shard has failed, and the job has ended.
        if not (job.folder / "job.json").exists():
            shutil.rmtree(job.folder, ignore_errors=True)


@lru_cache(maxsize=16)
def _open_on_worker(root: str, score_id: str, _thread: int) -> tuple[Job, ShardContext]:
    """Open a job for a thread of a worker, and keep its engine warm between shards.

    The thread is part of the cache's key because threads cannot share an open file.
    """
    from distributed import get_worker

    from nnbuild.scoring.job import resume_job

    job = resume_job(score_id, root)
    context = shard_context(job)
    threads = context.config.threads or int(get_worker().state.nthreads)
    config = context.config.model_copy(update={"threads": threads})
    engine = lru_cache(maxsize=1)(lambda: job_engine(job, config))
    return job, context._replace(config=config, engine=engine)


def connect(address: str) -> "Client":
    """Return a client of a Dask cluster.

    Raises:
        ConfigError: Dask is not installed, or no scheduler answers at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            "scoring on a cluster needs Dask, which is not installed; pip install 'nnbuild[dask]'"
        ) from error
    try:
        return Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({reason}); start `dask scheduler`",
            setting="address",
            value=address,
        ) from error


def _next_done(ready: "queue.SimpleQueue[Future]", stop: Callable[[], int | None]) -> "Future":
    """Wait for the next finished future, and look for a signal meanwhile."""
    while True:
        if signal_number := stop():
            raise Interrupted(f"stopped by signal {signal_number}", signal_number)
        try:
            return ready.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue


def _drain(futures: "list[Future]") -> None:
    """Wait for the shards in progress, so that no worker writes to the folder afterwards."""
    deadline = time.monotonic() + _SECONDS_FOR_A_SHARD
    while not all(each.done() for each in futures) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _shard_of(future: "Future") -> Shard:
    from distributed import KilledWorker

    try:
        return Shard.model_validate(future.result())
    except KilledWorker as error:
        raise RunError(
            f"a shard has killed several workers ({error}); look at their logs and memory"
        ) from error
