"""Hand out the work of a job to the processes that score it.

A request asks for a whole shard, for a part of a shard, or to put a shard together from its parts.
Whole shards cost least; parts let all processes end at the same time, whatever the size of a shard.
"""

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from nnbuild.data.streams import InputChunk
from nnbuild.scoring.parts import Part
from nnbuild.scoring.pieces import split_shard
from nnbuild.scoring.shards import Pending, Shard

Request = dict[str, Any]
"""`folder` and `shard`; `part` for its number, or `parts` for the descriptions of all of them."""

Place = tuple[int, int]
"""Number of a shard, and of a part of it; -1 for all of the shard."""

FIRST: Place = (-1, -1)
"""A place before all others."""


def place_of(request: Request) -> Place:
    """Return the place of the rows of a request."""
    return request["shard"], request.get("part", -1)


class Schedule:
    """Hands out shards, parts of shards, and each shard to put together when its parts are there.

    A process gets the parts of a large row group in a row, since each part is reached by reading
    those before it. Shards and row groups are begun in order; at the end, a process without work
    takes over the second half of the parts that another has left.

    Args:
        pending: Number and chunks of each shard.
        part_rows: Maximum number of rows in a part.
        folder: Folder for the parts and the finished shards.
        whole: Number of the first shards that are handed out whole.
    """

    def __init__(self, pending: Pending, part_rows: int, folder: Path, *, whole: int = 0) -> None:
        self._folder = str(folder)
        self._changed = threading.Condition()
        self._end: Place | None = None
        self._whole = deque(number for number, _ in pending[:whole])
        self._parts: dict[int, dict[int, Part]] = {number: {} for number, _ in pending[whole:]}
        self._counts: dict[int, int] = {}
        self._waiting = deque(self._row_groups(pending[whole:], part_rows))
        self._begun: dict[Hashable, deque[Place]] = {}
        self._complete = [shard for shard, count in self._counts.items() if not count]

    def _row_groups(self, pending: Pending, part_rows: int) -> Sequence[deque[Place]]:
        """Return the parts of each row group, and count those of each shard."""
        groups: dict[tuple[int, InputChunk], deque[Place]] = {}
        for shard, chunks in pending:
            parts = split_shard(chunks, part_rows)
            self._counts[shard] = len(parts)
            for number, pieces in enumerate(parts):
                groups.setdefault((shard, pieces[0].chunk), deque()).append((shard, number))
        return list(groups.values())

    def next_request(self, process: Hashable, *, busy: bool) -> Request | None:
        """Return the next request for a process; None if there is nothing to hand out.

        Args:
            process: The process.
            busy: Whether it has a request. Otherwise it waits for parts that others have not
                finished, to put their shard together.
        """
        with self._changed:
            while (request := self._request(process, busy=busy)) is None:
                if busy or not self._parts or self._end is not None:
                    return None
                self._changed.wait()
            return {"folder": self._folder, **request}

    def _request(self, process: Hashable, *, busy: bool) -> Request | None:
        if self._complete and self._end is None:
            shard = self._complete.pop()
            parts = self._parts.pop(shard)
            if not self._parts:
                self._changed.notify_all()
            return {"shard": shard, "parts": [parts[each].model_dump() for each in sorted(parts)]}
        if self._whole:
            if busy or not self._is_before_end((self._whole[0], -1)):
                return None
            return {"shard": self._whole.popleft()}
        if (place := self._next_place(process)) is not None:
            return {"shard": place[0], "part": place[1]}
        return None

    def _next_place(self, process: Hashable) -> Place | None:
        """Return the next part that a process scores, which is before the end."""
        while self._begun.get(process) or self._begin(process):
            place = self._begun[process].popleft()
            if self._is_before_end(place):
                return place
        return None

    def _begin(self, process: Hashable) -> bool:
        """Give a process a row group, or the second half of what another has left of one."""
        if self._waiting:
            self._begun[process] = self._waiting.popleft()
            return True
        largest = max(self._begun.values(), key=len, default=deque[Place]())
        count = (len(largest) + 1) // 2
        self._begun[process] = deque([largest.pop() for _ in range(count)][::-1])
        return count > 0

    def finish(self, request: Request, answer: dict[str, Any]) -> int | Shard:
        """Record the answer to a request, and return the rows of a part, or the finished shard."""
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

    def stop(self, place: Place) -> None:
        """Hand out only what is before a place, where an error was found."""
        with self._changed:
            self._end = place if self._end is None else min(self._end, place)
            self._changed.notify_all()

    def is_wanted(self, place: Place) -> bool:
        """Return whether a place is before all errors that were found."""
        with self._changed:
            return self._is_before_end(place)

    def _is_before_end(self, place: Place) -> bool:
        return self._end is None or place < self._end
