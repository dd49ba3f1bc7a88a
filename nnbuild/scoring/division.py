"""Decide whether several processes score a job, and in what units, from the cost of a few rows."""

import time
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from nnbuild.data.streams import InputChunk, RejectedRows
from nnbuild.runtime.environment import processors
from nnbuild.scoring.job import Job
from nnbuild.scoring.job_shards import job_engine, progress_of
from nnbuild.scoring.pieces import split_shard

_SECONDS_TO_START = 1.0  # of the other processes, on a machine of 2026
_WRITING = 0.6e-6  # seconds to make a row of the output and write it
_CORES_OF_THREADS = 8  # which the threads of one process keep busy, measured on 16 cores
_SHARE_OF_THREADS = 0.8  # of two cores, which three threads kept busy: they wait for each other
_PROBES, _PROBE_ROWS, _PROBE_SECONDS = 9, 128, 0.05
_FEW_ROWS = 512
_SECONDS_PER_SHARD = 5.0  # of work that a stopped job may lose in each process


class Division(NamedTuple):
    """How a job is divided among processes.

    Attributes:
        processes: Number of processes that make its shards; 1 for this one alone.
        whole_shards: Whether a process makes a whole shard at a time, until few are left.
    """

    processes: int
    whole_shards: bool = False


def division_of(job: Job) -> Division:
    """Return how a job is divided.

    A model that only Keras can run stays in this process: TensorFlow takes seconds to start. For
    others the time of both ways is estimated from a few rows. Whole shards need no files for their
    parts, but the rows of a shard that is not finished are scored again after a stop: only shards
    that take seconds are made whole.
    """
    count = min(job.config.threads or processors(), processors())
    engines = {job.model.engine} | ({job.shadow.engine} if job.shadow else set())
    if count == 1 or engines != {"onnx"}:
        return Division(1)
    _, pending = progress_of(job, is_verified=False)  # it is verified where it counts
    chunks = [chunk for _, chunks in pending for chunk in chunks]
    rows = sum(chunk.rows for chunk in chunks)
    if rows <= _FEW_ROWS:
        return Division(1)
    cost = _cost(job, chunks[:_PROBES])
    if not processes_are_faster(cost, rows, count):
        return Division(1)
    part_rows = job.source.part_rows(job.config.batch_size)
    parts = sum(len(split_shard(each, part_rows)) for _, each in pending)
    most_rows = max(sum(chunk.rows for chunk in each) for _, each in pending)
    return Division(min(count, parts), most_rows * sum(cost) <= _SECONDS_PER_SHARD)


class Cost(NamedTuple):
    """Seconds that one core takes for a row."""

    reading: float
    inference: float


def processes_are_faster(cost: Cost, rows: int, count: int) -> bool:
    """Return whether a number of processes score rows earlier than the threads of this process.

    One thread reads, others infer meanwhile, and one writes. Until the other processes have
    started, this one scores alone.
    """
    together = cost.reading + cost.inference + _WRITING
    cores = _SHARE_OF_THREADS * min(count, _CORES_OF_THREADS)
    in_threads = rows * max(cost.reading, together / cores)
    shared = rows * together - _SECONDS_TO_START
    return _SECONDS_TO_START + shared / count < in_threads


def _cost(job: Job, chunks: Sequence[InputChunk]) -> Cost:
    """Measure the cost of the first rows of some chunks, after a batch that warms up."""
    engine = job_engine(job, job.config.model_copy(update={"threads": 1}))
    rows, reading, inference = 0, 0.0, 0.0
    batches = chain.from_iterable(job.source.read(each, _PROBE_ROWS) for each in chunks)
    for number in range(_PROBES):
        began = time.perf_counter()
        batch = next(batches, None)
        read = time.perf_counter()
        if batch is None or isinstance(batch, RejectedRows):
            break
        engine.logits(batch.images)
        inferred = time.perf_counter()
        if number == 1:
            rows, reading, inference = 0, 0.0, 0.0
        rows += len(batch.images)
        reading += read - began
        inference += inferred - read
        if number and reading + inference > _PROBE_SECONDS:
            break
    return Cost(reading / rows, inference / rows) if rows else Cost(0.0, 0.0)
