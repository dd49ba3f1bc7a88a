"""The processes that make shards and parts of them; `nnbuild.scoring.processes` starts them.

`main` opens the job and loads its model, and then forks a process for each socket that it was
given: they share the memory of the model and of what was read, and start in milliseconds. A process
answers a line of JSON, the request, by another one; before it, lines can say how many rows were
scored. It ends when its socket is closed, so it does not outlive the process that asks.
"""

import gc
import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from nnbuild import errors
from nnbuild.errors import InputError, NnbuildError, RunError, one_line
from nnbuild.runtime.lazy_imports import start_arrow_without_pandas
from nnbuild.scoring.job import Job, resume_job, shards_of, staging
from nnbuild.scoring.job_shards import job_engine, shard_context
from nnbuild.scoring.parts import Part, join_parts, make_part
from nnbuild.scoring.pieces import split_shard
from nnbuild.scoring.schedule import Request
from nnbuild.scoring.shards import Shard, make_shards
from nnbuild.store import Store, presence

Answer = dict[str, Any]
Report = Callable[[int], None]
_SHARDS_AT_ONCE = 4
_SECONDS_TO_REPORT = 0.2


def main(root: str, score_id: str, index: str, sockets: list[int]) -> None:
    """Open a job, and answer requests on each socket in a process of its own.

    Args:
        root: Root of the store.
        score_id: ID of the job.
        index: File with the index of the input, or with null.
        sockets: File descriptors of connected sockets.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_arrow_without_pandas()
    pa.set_cpu_count(1)
    connections = [socket.socket(fileno=each) for each in sockets]
    try:
        scorer = Scorer(resume_job(score_id, root, json.loads(Path(index).read_text())))
        scorer.load_model()
    except Exception as error:  # noqa: BLE001  (the process that asks raises it)
        for connection in connections:
            connection.sendall(_line(describe_error(error)))
        return
    gc.collect()
    gc.freeze()  # a later collection would copy the pages that the processes share
    children = []
    for own in connections:
        if child := os.fork():
            children.append(child)
            continue
        for other in connections:
            if other is not own:
                other.close()
        with presence.watch(staging(Store(root), score_id)):
            scorer.answer_all(own)
    for connection in connections:
        connection.close()
    for child in children:
        os.waitpid(child, 0)


class Scorer:
    """An open job, and the requests about it.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        config = job.config.model_copy(update={"threads": 1})
        self._context = shard_context(job)._replace(
            config=config, engine=cache(lambda: job_engine(job, config))
        )
        self._shards = shards_of(job)
        part_rows = job.source.part_rows(config.batch_size)
        self._parts = lru_cache(_SHARDS_AT_ONCE)(
            lambda shard: split_shard(self._shards[shard], part_rows)
        )

    def load_model(self) -> None:
        """Load the model, which is otherwise loaded when the first rows are scored.

        Raises:
            ContractError: It cannot be loaded.
        """
        self._context.engine()

    def answer_all(self, connection: socket.socket) -> None:
        """Answer the requests on a connection until it is closed; the first answer is not asked."""
        requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        lines = connection.makefile("r", encoding="utf-8")

        def receive() -> None:
            with suppress(OSError):  # the other side died before it read an answer
                for line in lines:
                    requests.put(line)
            os._exit(0)  # in the middle of a request: nobody waits for the answer

        threading.Thread(target=receive, daemon=True).start()

        def report(rows: int) -> None:
            connection.sendall(_line({"scored": rows}))

        answer: Answer = {"ready": True}
        while True:
            connection.sendall(_line(answer))
            answer = _answer_of(self.answer, json.loads(requests.get()), report)

    def answer(self, request: Request, report: Report) -> Answer:
        """Make a shard, score a part of one, or put one together from its parts.

        Args:
            request: What to do; see `nnbuild.scoring.schedule`.
            report: Receives numbers of scored rows while a whole shard is made.

        Returns:
            The fields of a `Part` or of a `Shard`.
        """
        folder, number = Path(request["folder"]), request["shard"]
        chunks = self._shards[number]
        if "part" in request:
            pieces = self._parts(number)[request["part"]]
            path = part_path(folder, number, request["part"])
            return make_part(self._context, self._context.engine(), pieces, path).model_dump()
        if "parts" not in request:
            return self._make_shard(number, folder, report).model_dump()
        parts = [
            (Part.model_validate(part), part_path(folder, number, place))
            for place, part in enumerate(request["parts"])
        ]
        return join_parts(self._context, number, chunks, parts, folder).model_dump()

    def _make_shard(self, number: int, folder: Path, report: Report) -> Shard:
        """Make a whole shard, and report its rows now and then."""
        pending = [(number, self._shards[number])]
        results = make_shards(self._context, pending, folder, overlapped=False)
        rows, reported = 0, time.monotonic()
        while not isinstance(result := next(results), Shard):
            rows += result
            if time.monotonic() - reported > _SECONDS_TO_REPORT:
                report(rows)
                rows, reported = 0, time.monotonic()
        report(rows)
        return result


def _answer_of(function: Callable[..., Answer], *arguments: object) -> Answer:
    """Return the answer of a function, or a description of its error."""
    try:
        return function(*arguments)
    except BaseException as error:  # noqa: BLE001  (the process that asks raises it)
        return describe_error(error)


def part_path(folder: Path, shard: int, part: int) -> Path:
    """Return the file of a part."""
    return folder / f"{shard:05d}-{part:05d}.arrow"


def _line(answer: Answer) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def describe_error(error: BaseException) -> Answer:
    """Describe an exception in JSON, from which `error_from` makes it again."""
    if isinstance(error, OSError) and error.errno is not None:
        return {
            "error": "OSError",
            "message": error.strerror,
            "errno": error.errno,
            "file": error.filename,
        }
    if not isinstance(error, NnbuildError | MemoryError):
        return {"error": "", "message": f"{type(error).__name__}: {one_line(error)}"}
    described: Answer = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, InputError) and error.setting is not None:
        described |= {"setting": error.setting, "value": str(error.value)}
    return described


def error_from(description: Answer) -> BaseException:
    """Return the exception that `describe_error` described."""
    message = description["message"]
    if description["error"] == "MemoryError":
        return MemoryError(message)
    if "errno" in description:
        return OSError(description["errno"], message, description["file"])
    kind = getattr(errors, description["error"], None)
    if kind is None:
        return RunError(f"a scoring process failed: {message}")
    setting = {key: description[key] for key in ("setting", "value") if key in description}
    error: NnbuildError = kind(message, **setting)
    return error
