"""Runs the real program in a pseudo-terminal, as a person at a keyboard would."""

import errno
import os
import pty
import re
import select
import signal
import sys
import termios
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
CTRL_C = b"\x03"
_MARK = "NNBUILD_TEST_TERMINAL"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program in the foreground of a terminal of its own.

    The kernel sends a typed Ctrl-C to the whole foreground process group, as in a real terminal.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], cwd: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._screen, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 200))
        self._seen = b""
        # The leader of a session that opens a terminal gets it as its controlling terminal.
        opening = (os.POSIX_SPAWN_OPEN, 0, os.ttyname(theirs), os.O_RDWR, 0)
        self.process = psutil.Process(
            os.posix_spawn(
                "/usr/bin/env",
                ["env", "-C", str(cwd), *command],
                {**environment, _MARK: self._mark, "TERM": "xterm"},
                file_actions=[opening, *((os.POSIX_SPAWN_DUP2, 0, each) for each in (1, 2))],
                setsid=True,
                setsigdef=[signal.SIGINT],  # ignored where a shell runs the tests in its background
            )
        )
        os.close(theirs)

    @property
    def screen(self) -> str:
        """Everything that was printed, without the escape sequences of colours and the cursor."""
        return _ESCAPE.sub("", self._seen.decode(errors="replace"))

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._screen, keys)

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Read until a text has appeared.

        Raises:
            AssertionError: The program ended before, or the text did not come in time.
        """
        end = time.monotonic() + seconds
        while text not in self.screen:
            assert self._read(end - time.monotonic()), f"no {text!r} in {self.screen[-2000:]!r}"

    def wait(self, seconds: float) -> int:
        """Read until the program has ended; return its exit code, negative for a signal."""
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        return int(self.process.wait(max(end - time.monotonic(), 0.1)))

    def read_for(self, seconds: float) -> None:
        """Read what comes within some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._read(end - time.monotonic()):
            pass

    def left(self, seconds: float = 10) -> list[psutil.Process]:
        """Return the processes that the program has left running, after some seconds of grace."""
        _, alive = psutil.wait_procs(list(self._started()), timeout=seconds)
        return alive

    def close(self) -> None:
        """Kill what is left."""
        for each in self._started():
            each.kill()
        psutil.wait_procs([self.process], timeout=10)
        os.close(self._screen)

    def _started(self) -> Iterator[psutil.Process]:
        for each in psutil.process_iter():
            try:
                if each.environ().get(_MARK) == self._mark:
                    yield each
            except psutil.Error:
                continue

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self._screen], [], [], seconds)[0]:
            return False
        try:
            read = os.read(self._screen, 65536)
        except OSError as error:  # how Linux reports that the other end is closed
            if error.errno != errno.EIO:
                raise
            return False
        self._seen += read
        return bool(read)


@contextmanager
def terminal(
    *arguments: object, environment: Mapping[str, str] = os.environ, cwd: Path = ROOT
) -> Iterator[Terminal]:
    """Run `nnbuild` with these arguments in a terminal; kill what is left of it at the end."""
    command = [sys.executable, "-m", "flows.cli.main", *map(str, arguments)]
    found = Terminal(command, environment, cwd)
    try:
        yield found
    finally:
        found.close()
