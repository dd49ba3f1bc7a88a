"""Make the shards of a job in processes that share the cores of this machine.

Most of the work on small pictures holds Python's interpreter lock, so threads do not share it. Each
process reads, decodes, scores and writes shards or parts of them by itself, on one core. This
process hands out the work, and is one of those that do it, so that a core works while the others
start. Neither images nor rows pass between processes. The bytes do not depend on their number.

Shards are made in a folder for the time of the call, and moved into the job by the thread that
holds its lock. A thread or process that outlives the call thus changes nothing.
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
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from nnbuild.errors import Interrupted, RunError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.progress import ProgressCallback, RowProgress
from nnbuild.runtime.signals import deferred_signals
from nnbuild.runtime.threads import SECONDS_TO_LET_GO
from nnbuild.scoring.division import Division
from nnbuild.scoring.job import Job
from nnbuild.scoring.job_shards import progress_of, rows_of
from nnbuild.scoring.schedule import FIRST, Place, Request, Schedule, place_of
from nnbuild.scoring.shards import Shard, adopt_shard
from nnbuild.scoring.worker import Answer, Report, Scorer, error_from
from nnbuild.store.filesystem import make_durable_dir

_UNFINISHED = "unfinished-"
_POLL_SECONDS = 0.2
_SECONDS_TO_END = 10.0
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nnbuild.scoring.worker import main; "
    "main(*sys.argv[2:5], [int(each) for each in sys.argv[5:]])"
)


def score_in_processes(
    job: Job, division: Division, progress: ProgressCallback | None = None
) -> list[Shard]:
    """Make the missing shards in several processes; see `nnbuild.scoring.job.score_input`.

    Args:
        job: The job.
        division: Number of processes, with this one, and whether they make whole shards.
        progress: Receives the number of scored rows.

    Raises:
        DataError: A row cannot be scored, and `on_error` is `stop`.
        ContractError: The output of the model is not a finite array of logits.
        RunError: A process died.
        Interrupted: A signal asked to stop; finished shards are kept.
    """
    done, pending = progress_of(job)
    counter = RowProgress(progress, rows_of(done), job.total)
    make_durable_dir(job.folder / "rows")
    for killed in job.folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(killed, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=job.folder))
    schedule = Schedule(
        pending,
        job.source.part_rows(job.config.batch_size),
        folder,
        whole=max(0, len(pending) - division.processes) if division.whole_shards else 0,
    )
    try:
        index = folder / "index.json"
        index.write_text(json.dumps(job.source.index()), encoding="ascii")
        with closing(_events(job, schedule, index, division.processes)) as events:
            for event in events:
                if isinstance(event, Shard):
                    adopt_shard(event, folder, job.folder)
                    done.append(event)
                else:
                    counter.add(event)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    fault_injection.failpoint("score:shards")
    return sorted(done, key=lambda each: each.name)


class _Failure(NamedTuple):
    """An error, and the place in the input where it was found."""

    place: Place
    error: BaseException


Event = int | Shard | _Failure | None
"""Number of processed rows, a finished shard, a failure, or the end of a process's requests."""


def _events(job: Job, schedule: Schedule, index: Path, count: int) -> Generator[int | Shard]:
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
            schedule.stop(FIRST)
            for other in others:
                other.kill()
            raise
        finally:
            for each in threads:
                each.join(SECONDS_TO_LET_GO)  # this process may be in the middle of a batch
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
    process: "_Process | _ThisProcess", schedule: Schedule, events: "queue.SimpleQueue[Event]"
) -> None:
    """Let a process do requests until there are no more.

    It is asked for more than one at a time, so that it does not wait for this process. After an
    error it does what it was asked for, which can be of earlier rows.
    """
    asked: deque[Request] = deque()
    place, failed = FIRST, False

    def fail(error: BaseException) -> None:
        schedule.stop(place)
        events.put(_Failure(place, error))

    def report(rows: int) -> None:
        if not schedule.is_wanted(place):
            raise RunError("the job stopped meanwhile")
        events.put(rows)

    try:
        process.wait_until_ready()
    except BaseException as error:  # noqa: BLE001  (raised again by the thread of the job)
        fail(error)
        failed = True
    while True:
        while not failed and len(asked) < process.requests_at_once:
            request = schedule.next_request(process, busy=bool(asked))
            if request is None:
                break
            process.send(request)
            asked.append(request)
        if not asked:
            break
        request = asked.popleft()
        place = place_of(request)
        try:
            events.put(schedule.finish(request, process.answer(report)))
        except BaseException as error:  # noqa: BLE001  (raised again by the thread of the job)
            fail(error)
            failed = True
    events.put(None)


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

    Args:
        job: The job.
    """

    requests_at_once = 1

    def __init__(self, job: Job) -> None:
        self._scorer = Scorer(job)
        self._request: Request = {}

    def wait_until_ready(self) -> None:
        """Do nothing: the job is open."""

    def send(self, request: Request) -> None:
        """Take a request."""
        self._request = request

    def answer(self, report: Report) -> Answer:
        """Do what was requested last, and return the answer; see `Scorer.answer`."""
        return self._scorer.answer(self._request, report)


class _Process:
    """One of the processes that were started for a job.

    Args:
        connection: Socket on which it answers.
        group: The process that started it.
        stderr: File with what the processes wrote to standard error.
    """

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
        self.answer(lambda _: None)

    def send(self, request: Request) -> None:
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

    def answer(self, report: Report) -> Answer:
        """Return its answer to the first request that it has not answered.

        Args:
            report: Receives the numbers of rows that it scored of a whole shard.

        Raises:
            NnbuildError: The request failed, or the process died.
        """
        while True:
            try:
                line = self._lines.readline()
            except OSError as error:
                raise self._death() from error
            if not line:
                raise self._death()
            answer: Answer = json.loads(line)
            if "error" in answer:
                raise error_from(answer)
            if "scored" not in answer:
                return answer
            report(answer["scored"])

    def _death(self) -> RunError:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = f" ({lines[-1][:300]})" if lines else ""
        return RunError(
            f"a scoring process was killed or died{reason}; if memory was short, set threads to a "
            "smaller number"
        )
