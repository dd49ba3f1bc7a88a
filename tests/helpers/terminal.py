"""Run the real program in a pseudo-terminal, as a user at a keyboard would."""

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
    """A program in the foreground of its own terminal.

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
        """Return the output so far, without escape sequences."""
        return _ESCAPE.sub("", self._seen.decode(errors="replace"))

    def press(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self._screen, keys)

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Read until a text appears.

        Raises:
            AssertionError: The program ended before, or the text did not come in time.
        """
        end = time.monotonic() + seconds
        while text not in self.screen:
            assert self._read(end - time.monotonic()), f"no {text!r} in {self.screen[-2000:]!r}"

    def wait(self, seconds: float) -> int:
        """Read until the program ends; return its exit code, negative for a signal."""
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        return int(self.process.wait(max(end - time.monotonic(), 0.1)))

    def read_for(self, seconds: float) -> None:
        """Read output for some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._read(end - time.monotonic()):
            pass

    def left(self, seconds: float = 10) -> list[psutil.Process]:
        """Return the processes that still run after a grace period."""
        _, alive = psutil.wait_procs(list(self._started()), timeout=seconds)
        return alive

    def close(self) -> None:
        """Kill the remaining processes."""
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
        except OSError as error:  # Linux reports a closed terminal with EIO
            if error.errno != errno.EIO:
                raise
            return False
        self._seen += read
        return bool(read)


@contextmanager
def terminal(
    *arguments: object, environment: Mapping[str, str] = os.environ, cwd: Path = ROOT
) -> Iterator[Terminal]:
    """Run `nnbuild` in a terminal; kill its remaining processes at the end of the block."""
    command = [sys.executable, "-m", "flows.cli.main", *map(str, arguments)]
    program = Terminal(command, environment, cwd)
    try:
        yield program
    finally:
        program.close()
