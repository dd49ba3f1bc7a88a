"""Make the shards of a job in processes that share the cores of this machine.

Most of the work on small pictures holds Python's interpreter lock, so threads do not share it. Each
process reads, decodes, scores and writes parts of shards by itself, on one core. This process hands
out the parts, in order, and is one of those that score them, so that a core works while the others
start. Neither images nor rows pass between processes. The bytes do not depend on their number.
"""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from nnbuild.data.streams import InputChunk, RejectedRows
from nnbuild.errors import Interrupted, RunError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.environment import processors
from nnbuild.runtime.progress import NullProgress, ProgressCallback
from nnbuild.runtime.signals import deferred_signals
from nnbuild.runtime.threads import SECONDS_TO_LET_GO
from nnbuild.scoring.job import Job, job_engine, progress_of
from nnbuild.scoring.parts import Part
from nnbuild.scoring.pieces import split_shard
from nnbuild.scoring.shards import Shard
from nnbuild.scoring.worker import Scorer, error_from
from nnbuild.store.filesystem import make_durable_dir

_SECONDS_TO_START = 1.0  # of the other processes, on a machine of 2026
_WRITING = 1e-6  # seconds per row to make, write and join the rows of a part
_CORES_OF_THREADS = 8  # which the threads of one process keep busy, measured on 16 cores
_PROBES, _PROBE_ROWS, _PROBE_SECONDS = 9, 128, 0.05
_FEW_ROWS = 512
_PARTS = "parts-"
_POLL_SECONDS = 0.2
_SECONDS_TO_END = 10.0
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nnbuild.scoring.worker import main; "
    "main(*sys.argv[2:5], [int(each) for each in sys.argv[5:]])"
)


def processes_worthwhile(job: Job) -> int:
    """Return the number of processes that make a job's shards; 1 for this one alone.

    A model that only Keras can run stays in this process: TensorFlow takes seconds to start. For
    others both times are estimated from a few rows.
    """
    count = min(job.config.threads or processors(), processors())
    engines = {job.model.engine} | ({job.shadow.engine} if job.shadow else set())
    if count == 1 or engines != {"onnx"}:
        return 1
    _, pending = progress_of(job)
    chunks = [chunk for _, chunks in pending for chunk in chunks]
    rows = sum(chunk.rows for chunk in chunks)
    if rows <= _FEW_ROWS:
        return 1
    cost = _cost(job, chunks[:_PROBES])
    if not processes_are_faster(cost, rows, count):
        return 1
    part_rows = job.source.part_rows(job.config.batch_size)
    return min(count, sum(len(split_shard(each, part_rows)) for _, each in pending))


class Cost(NamedTuple):
    """Seconds that one core takes for a row."""

    reading: float
    inference: float


def processes_are_faster(cost: Cost, rows: int, count: int) -> bool:
    """Return whether a number of processes score rows earlier than the threads of this process.

    One thread reads, and others infer meanwhile. Until the other processes have started, this one
    scores alone.
    """
    together = cost.reading + cost.inference
    in_threads = rows * max(cost.reading, together / min(count, _CORES_OF_THREADS))
    shared = rows * (together + _WRITING) - _SECONDS_TO_START
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


def score_in_processes(
    job: Job, count: int, progress: ProgressCallback | None = None
) -> list[Shard]:
    """Make the missing shards in several processes; see `nnbuild.scoring.job.score_input`.

    Args:
        job: The job.
        count: Number of processes, with this one.
        progress: Receives the number of scored rows.

    Raises:
        DataError: A row cannot be scored, and `on_error` is `stop`.
        ContractError: The output of the model is not a finite array of logits.
        RunError: A process died.
        Interrupted: A signal asked to stop; finished shards are kept.
    """
    progress = progress or NullProgress()
    done, pending = progress_of(job)
    rows, total = sum(each.rows + each.quarantined for each in done), job.total
    began = time.perf_counter()
    make_durable_dir(job.folder / "rows")
    for killed in job.folder.glob(f"{_PARTS}*"):
        shutil.rmtree(killed, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PARTS, dir=job.folder))
    schedule = _Schedule(pending, job.source.part_rows(job.config.batch_size), folder)
    try:
        index = folder / "index.json"
        index.write_text(json.dumps(job.source.index()), encoding="ascii")
        with closing(_events(job, schedule, index, count)) as events:
            for event in events:
                if isinstance(event, Shard):
                    done.append(event)
                else:
                    rows += event
                    progress.scored(rows, total, time.perf_counter() - began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    fault_injection.failpoint("score:shards")
    return sorted(done, key=lambda each: each.name)


Place = tuple[int, int]
"""Number of a shard, and of a part of it."""

_FIRST: Place = (-1, -1)


class _Failure(NamedTuple):
    """An error, and the place in the input where it was found."""

    place: Place
    error: BaseException


Event = int | Shard | _Failure | None
"""Number of processed rows, a finished shard, a failure, or the end of a process's requests."""


def _events(job: Job, schedule: "_Schedule", index: Path, count: int) -> Generator[int | Shard]:
    """Yield numbers of processed rows, and each shard when it is finished.

    If requests fail, the error of the first rows is raised, as if one process had read them all.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    failures: list[_Failure] = []
    with deferred_signals() as stop, _processes(job, index, count - 1) as others:
        workers = [_ThisProcess(job), *others]
        threads = [
            threading.Thread(target=_ask_all, args=(each, schedule, events), daemon=True)
            for each in workers
        ]
        for each in threads:
            each.start()
        try:
            waiting = count
            while waiting:
                event = _next_event(events, stop)
                if event is None:
                    waiting -= 1
                elif isinstance(event, _Failure):
                    failures.append(event)
                else:
                    yield event
        except BaseException:
            schedule.stop(_FIRST)
            for other in others:
                other.kill()
            raise
        finally:
            for each in threads:
                each.join(SECONDS_TO_LET_GO)  # this process may be in the middle of a part
    if failures:
        raise min(failures, key=lambda each: each.place).error


def _next_event(events: "queue.SimpleQueue[Event]", stop: Callable[[], int | None]) -> Event:
    """Wait for the next event, and look for a signal meanwhile."""
    while True:
        if signal_number := stop():
            raise Interrupted(f"stopped by signal {signal_number}", signal_number)
        with suppress(queue.Empty):
            return events.get(timeout=_POLL_SECONDS)


def _ask_all(
    process: "_Process | _ThisProcess",
    schedule: "_Schedule",
    events: "queue.SimpleQueue[Event]",
) -> None:
    """Let a process do requests until there are no more.

    It is asked for more than one at a time, so that it does not wait for this process. After an
    error it does what it was asked for, which can be of earlier rows.
    """
    asked: deque[dict[str, Any]] = deque()
    place, failed = _FIRST, False

    def fail(error: BaseException) -> None:
        schedule.stop(place)
        events.put(_Failure(place, error))

    try:
        process.wait_until_ready()
    except BaseException as error:  # noqa: BLE001  (raised again by the thread of the job)
        fail(error)
        failed = True
    while True:
        while not failed and len(asked) < process.requests_at_once:
            request = schedule.next_request(process, wait=not asked)
            if request is None:
                break
            process.send(request)
            asked.append(request)
        if not asked:
            break
        request = asked.popleft()
        place = request["shard"], request.get("part", -1)
        try:
            events.put(schedule.finish(request, process.answer()))
        except BaseException as error:  # noqa: BLE001  (raised again by the thread of the job)
            fail(error)
            failed = True
    events.put(None)


class _Schedule:
    """Hands out the parts of shards, and each shard to join when its parts are there.

    A process gets the parts of a large row group in a row, since each part is reached by reading
    those before it. Row groups are begun in order; at the end, a process without work takes over
    the second half of the parts that another has left.

    Args:
        pending: Number and chunks of each shard.
        part_rows: Most rows of a part.
        folder: Folder for the parts.
    """

    def __init__(
        self, pending: Sequence[tuple[int, list[InputChunk]]], part_rows: int, folder: Path
    ) -> None:
        self._folder = str(folder)
        self._changed = threading.Condition()
        self._end: Place | None = None
        self._parts: dict[int, dict[int, Part]] = {number: {} for number, _ in pending}
        self._counts: dict[int, int] = {}
        groups: dict[tuple[int, InputChunk], deque[Place]] = {}
        for shard, chunks in pending:
            parts = split_shard(chunks, part_rows)
            self._counts[shard] = len(parts)
            for number, pieces in enumerate(parts):
                groups.setdefault((shard, pieces[0].chunk), deque()).append((shard, number))
        self._waiting = deque(groups.values())
        self._begun: dict[object, deque[Place]] = {}
        self._complete = [shard for shard, count in self._counts.items() if not count]

    def next_request(
        self, process: "_Process | _ThisProcess", *, wait: bool
    ) -> dict[str, Any] | None:
        """Return the next request for a process; None if there is nothing left to hand out.

        Args:
            process: The process.
            wait: Whether a process that joins waits for parts that others have not finished.
        """
        with self._changed:
            while True:
                if process.joins and self._complete and self._end is None:
                    shard = self._complete.pop()
                    parts = self._parts.pop(shard)
                    if not self._parts:
                        self._changed.notify_all()
                    ordered = [parts[part].model_dump() for part in sorted(parts)]
                    return {"folder": self._folder, "shard": shard, "parts": ordered}
                if (place := self._next_place(process)) is not None:
                    return {"folder": self._folder, "shard": place[0], "part": place[1]}
                if not (wait and process.joins and self._parts) or self._end is not None:
                    return None
                self._changed.wait()

    def _next_place(self, process: object) -> Place | None:
        """Return the next part that a process scores, which is before the end."""
        while self._begun.get(process) or self._begin(process):
            place = self._begun[process].popleft()
            if self._end is None or place < self._end:
                return place
        return None

    def _begin(self, process: object) -> bool:
        """Give a process a row group, or the second half of what another has left of one."""
        if self._waiting:
            self._begun[process] = self._waiting.popleft()
            return True
        largest = max(self._begun.values(), key=len, default=deque[Place]())
        count = (len(largest) + 1) // 2
        self._begun[process] = deque([largest.pop() for _ in range(count)][::-1])
        return count > 0

    def finish(self, request: dict[str, Any], answer: dict[str, Any]) -> int | Shard:
        """Record the answer to a request, and return the rows of a part, or the joined shard."""
        if "part" not in request:
            return Shard.model_validate(answer)
        part = Part.model_validate(answer)
        with self._changed:
            shard = request["shard"]
            self._parts[shard][request["part"]] = part
            if len(self._parts[shard]) == self._counts[shard]:
                self._complete.append(shard)
                self._changed.notify_all()
        return part.input_rows

    def stop(self, place: "Place") -> None:
        """Hand out only what is before a place, where an error was found."""
        with self._changed:
            self._end = place if self._end is None else min(self._end, place)
            self._changed.notify_all()


@contextmanager
def _processes(job: Job, index: Path, count: int) -> Iterator[list["_Process"]]:
    """Start the processes of a job, and end them after the block.

    They have a session of their own, so that Ctrl-C in a terminal reaches this process alone. They
    do not inherit its memory, in which TensorFlow may have been started.
    """
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(count)]
        for connection in chain(*pairs):
            stack.enter_context(connection)
        numbers = [theirs.fileno() for _, theirs in pairs]
        stderr = stack.enter_context(tempfile.TemporaryFile())
        path = json.dumps([str(Path(each).absolute()) for each in sys.path])
        arguments = [str(job.store.root), job.score_id, str(index), *map(str, numbers)]
        process = subprocess.Popen(  # noqa: S603  (our own program)
            [sys.executable, "-P", "-c", _START, path, *arguments],
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env={**_environment(), **os.environ},
        )
        for _, theirs in pairs:
            theirs.close()
        processes = [_Process(ours, process, stderr) for ours, _ in pairs]
        try:
            yield processes
        finally:
            for each in processes:
                each.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_END)
            _kill_group(process)


def _environment() -> dict[str, str]:
    """Return environment variables that the other processes have unless the user sets them."""
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if "jemalloc" in pa.supported_memory_backends():
        # Arrow's usual allocator keeps twice the memory for the same work.
        variables["ARROW_DEFAULT_MEMORY_POOL"] = "jemalloc"
    return variables


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _ThisProcess:
    """This process as one of those that score a job, with the interface of `_Process`.

    It puts no shards together. A part that is not finished when the job stops is written to a
    folder that is removed; a shard would appear in a job that another process may have resumed.

    Args:
        job: The job.
    """

    joins = False
    requests_at_once = 1

    def __init__(self, job: Job) -> None:
        self._scorer = Scorer(job)
        self._request: dict[str, Any] = {}

    def wait_until_ready(self) -> None:
        """Do nothing: the job is open."""

    def send(self, request: dict[str, Any]) -> None:
        """Take a request."""
        self._request = request

    def answer(self) -> dict[str, Any]:
        """Do what was requested last, and return the answer."""
        return self._scorer.answer(self._request)


class _Process:
    """One of the processes that were started for a job.

    Args:
        connection: Socket on which it answers.
        group: The process that started it.
        stderr: File with what the processes wrote to standard error.
    """

    joins = True
    requests_at_once = 2

    def __init__(
        self, connection: socket.socket, group: "subprocess.Popen[bytes]", stderr: Any
    ) -> None:
        self._connection, self._group, self._stderr = connection, group, stderr
        self._lines = connection.makefile("r", encoding="utf-8")

    def wait_until_ready(self) -> None:
        """Wait until it has opened the job.

        Raises:
            NnbuildError: It could not.
        """
        self.answer()

    def send(self, request: dict[str, Any]) -> None:
        """Send it a request; if it died, its answer says so."""
        with suppress(OSError):
            self._connection.sendall(json.dumps(request).encode() + b"\n")

    def close(self) -> None:
        """Close the connection, so that it ends."""
        with suppress(OSError):  # it has ended already
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()

    def kill(self) -> None:
        """Kill it, and the other processes of the job."""
        _kill_group(self._group)

    def answer(self) -> dict[str, Any]:
        """Return its answer to the first request that it has not answered.

        Raises:
            NnbuildError: The request failed, or the process died.
        """
        try:
            line = self._lines.readline()
        except OSError as error:
            raise self._death() from error
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise error_from(answer)
        return answer

    def _death(self) -> RunError:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = f" ({lines[-1][:300]})" if lines else ""
        return RunError(
            f"a scoring process was killed or died{reason}; if memory was short, set threads to a "
            "smaller number"
        )
