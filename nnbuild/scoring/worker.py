"""The processes that score parts of a job's shards; `nnbuild.scoring.processes` starts them.

`main` opens the job, and then forks a process for each socket that it was given: they share what
was read, and start in milliseconds. A process answers a line of JSON, the request, by another one.
It ends when its socket is closed, so it does not outlive the process that asks.
"""

import json
import os
import queue
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa

from nnbuild.errors import InputError, NnbuildError, one_line
from nnbuild.scoring.job import job_engine, resume_job, shard_context, shards_of
from nnbuild.scoring.parts import Part, join_parts, make_part, split_shard


def main(root: str, score_id: str, sockets: list[int]) -> None:
    """Open a job, and answer requests on each socket in a process of its own.

    Args:
        root: Root of the store.
        score_id: ID of the job.
        sockets: File descriptors of connected sockets.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    connections = [socket.socket(fileno=each) for each in sockets]
    try:
        scorer = _Scorer(root, score_id)
    except Exception as error:  # noqa: BLE001  (the process that asks raises it)
        for connection in connections:
            connection.sendall(_line(_described(error)))
        return
    children = []
    for own in connections:
        if child := os.fork():
            children.append(child)
            continue
        for other in connections:
            if other is not own:
                other.close()
        scorer.answer_all(own)
        os._exit(0)
    for connection in connections:
        connection.close()
    for child in children:
        os.waitpid(child, 0)


class _Scorer:
    """An open job, and the requests about it.

    Args:
        root: Root of the store.
        score_id: ID of the job.
    """

    def __init__(self, root: str, score_id: str) -> None:
        self._job = resume_job(score_id, root)
        config = self._job.config.model_copy(update={"threads": 1})
        self._context = shard_context(self._job)._replace(config=config)
        self._shards = shards_of(self._job)

    def answer_all(self, connection: socket.socket) -> None:
        """Answer the requests on a connection until it is closed."""
        requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        lines = connection.makefile("r", encoding="utf-8")

        def receive() -> None:
            for line in lines:
                requests.put(line)
            os._exit(0)  # in the middle of a request: nobody waits for the answer

        self._job.source.reopen()
        connection.sendall(_line({"ready": True}))
        threading.Thread(target=receive, daemon=True).start()
        engine = job_engine(self._job, self._context.config)
        while True:
            request = json.loads(requests.get())
            try:
                answer = self._answer(request, engine)
            except BaseException as error:  # noqa: BLE001  (the process that asks raises it)
                answer = _described(error)
            connection.sendall(_line(answer))

    def _answer(self, request: dict[str, Any], engine: Any) -> dict[str, Any]:
        folder, number = Path(request["folder"]), request["shard"]
        chunks = self._shards[number]
        if "part" in request:
            pieces = split_shard(chunks, self._context.config.batch_size)[request["part"]]
            path = part_path(folder, number, request["part"])
            return make_part(self._context, engine, pieces, path).model_dump()
        parts = [
            (Part.model_validate(part), part_path(folder, number, place))
            for place, part in enumerate(request["parts"])
        ]
        return join_parts(self._context, number, chunks, parts, self._job.folder).model_dump()


def part_path(folder: Path, shard: int, part: int) -> Path:
    """Return the file of a part."""
    return folder / f"{shard:05d}-{part:05d}.arrow"


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _described(error: BaseException) -> dict[str, Any]:
    """Return an exception in a form from which the process that asks makes it again."""
    if isinstance(error, OSError) and error.errno is not None:
        return {
            "error": "OSError",
            "message": error.strerror,
            "errno": error.errno,
            "file": error.filename,
        }
    if not isinstance(error, NnbuildError | MemoryError):
        return {"error": "", "message": f"{type(error).__name__}: {one_line(error)}"}
    described: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, InputError) and error.setting is not None:
        described |= {"setting": error.setting, "value": str(error.value)}
    return described
