"""The shards of a job on a Dask cluster: workers get the store's root, a job's id and a shard's number, never arrays.

Every worker opens the job for itself, so that model and input are verified there by their digests, and leaves its
shard in the job's folder, which has to be one that all of them see: it is below the store, or for a store behind a
URL below `$NNBUILD_WORKSHOP`. A shard of a worker that dies is made by another.
"""

import platform
import queue
import shutil
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from nnbuild.errors import ConfigError, Interrupted, RunError, StoreError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.signals import deferred_signals
from nnbuild.scoring.job import Job, Nobody, Watch, progress_of, shards_of, staging, work_of
from nnbuild.scoring.models import engine_of
from nnbuild.scoring.shards import Shard, Work, make_shards
from nnbuild.store import Store, presence
from nnbuild.store.filesystem import make_durable_dir

_SECONDS_TO_CONNECT = 10
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_FOR_A_SHARD = 60
_STOP = "stop"  # a file beside the job: shards that have not begun do not begin any more


def score_on_cluster(job: Job, address: str, watch: Watch | None = None) -> list[Shard]:
    """Make every shard that is not there yet, on the workers of a cluster; see `nnbuild.scoring.job.score_input`.

    Args:
        job: whose folder the workers see under the same path.
        address: of the scheduler, such as `tcp://127.0.0.1:8786`.
        watch: is told of rows, a shard at a time.

    Raises:
        ConfigError: nobody answers there, or Dask is not installed.
        StoreError: a worker does not see the job's folder.
        RunError: a shard has taken down several workers.
        Interrupted: a signal asked to stop; whole shards are kept.
    """
    watch = watch or Nobody()
    (job.folder / _STOP).unlink(missing_ok=True)
    done, todo = progress_of(job)
    total, began = job.total, time.perf_counter()
    make_durable_dir(job.folder / "rows")
    make_durable_dir(job.folder / "quarantine")
    with connect(address) as client, deferred_signals() as stop:
        waiting = [
            client.submit(make_shard, str(job.store.root), job.score_id, number, pure=False)
            for number, _ in todo
        ]
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future in waiting:
            future.add_done_callback(ready.put)
        try:
            for _ in todo:
                made = _made(_next(ready, stop))
                done.append(made)
                rows = sum(each.rows + each.quarantined for each in done)
                watch.scored(rows, total, time.perf_counter() - began)
        except BaseException:
            (job.folder / _STOP).touch()
            _drain(waiting)
            raise
        finally:
            client.cancel(waiting)
    if not any((job.folder / "quarantine").iterdir()):
        (job.folder / "quarantine").rmdir()
    fault_injection.failpoint("score:shards")
    return sorted(done, key=lambda each: each.name)


def make_shard(root: str, score_id: str, number: int) -> dict[str, Any]:
    """Make one shard of a job, on a worker.

    Args:
        root: of the store, as the worker sees it.
        score_id: of the job.
        number: of the shard.

    Returns:
        The fields of its `Shard`.

    Raises:
        StoreError: this worker does not see the job's folder.
    """
    folder = staging(Store(root), score_id)
    if not folder.is_dir():
        raise StoreError(
            f"worker {platform.node()} does not see {folder}; share that folder with all workers, "
            "or set $NNBUILD_WORKSHOP to one that is shared, on them and here"
        )
    if (folder / _STOP).exists():
        return {}
    job, work = _opened(root, score_id, threading.get_ident())
    try:
        with presence.watch(folder):
            pieces = make_shards(work, [(number, shards_of(job)[number])], job.folder)
            (shard,) = (each for each in pieces if not isinstance(each, int))
            return shard.model_dump()
    finally:
        if not (
            job.folder / "job.json"
        ).exists():  # the job has ended meanwhile, by another shard's error
            shutil.rmtree(job.folder, ignore_errors=True)


@lru_cache(maxsize=16)
def _opened(root: str, score_id: str, thread: int) -> tuple[Job, Work]:  # noqa: ARG001  (an open file is one thread's)
    """The job as this thread of a worker sees it, with its engine warm from one shard to the next."""
    from distributed import get_worker

    from nnbuild.scoring.job import resume_job

    job = resume_job(score_id, root)
    work = work_of(job)
    threads = work.config.threads or int(get_worker().state.nthreads)
    work = work_of(job)._replace(config=work.config.model_copy(update={"threads": threads}))
    engine = lru_cache(maxsize=1)(lambda: engine_of(job.model, work.config, job.folder))
    return job, work._replace(engine=engine)


def connect(address: str) -> Any:
    """A client of a Dask cluster.

    Raises:
        ConfigError: Dask is not installed, or no scheduler answers at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            "--runner dask needs Dask, which is not installed; pip install 'nnbuild[dask]'"
        ) from error
    try:
        return Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        told = " ".join(str(error).split())[:150]
        raise ConfigError(
            f"--address {address}: no Dask scheduler answers ({told}); start `dask scheduler`"
        ) from error


def _next(ready: "queue.SimpleQueue[Any]", stop: Callable[[], int | None]) -> Any:
    """The next future that is done; while there is none, a signal is heard."""
    while True:
        if number_of_signal := stop():
            raise Interrupted(f"stopped by signal {number_of_signal}", number_of_signal)
        try:
            return ready.get(timeout=_SECONDS_BETWEEN_LOOKS)
        except queue.Empty:
            continue


def _drain(futures: list[Any]) -> None:
    """Wait for the shards that are being made: nobody shall write into the job's folder any more."""
    until = time.monotonic() + _SECONDS_FOR_A_SHARD
    while not all(each.done() for each in futures) and time.monotonic() < until:
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _made(future: Any) -> Shard:
    from distributed import KilledWorker

    try:
        return Shard.model_validate(future.result())
    except KilledWorker as error:
        raise RunError(
            f"a shard has taken down several workers ({error}); look at their logs and memory"
        ) from error
