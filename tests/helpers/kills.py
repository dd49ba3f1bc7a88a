"""Simulate that the process is killed at a failpoint of the program."""

from contextlib import contextmanager

import pytest

from nnbuild.runtime import fault_injection


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the program may catch it."""


@contextmanager
def killing_at(number, prefix=""):
    """Raise `Killed` at the failpoint of a number, from 1; only those with a prefix count."""
    left = number

    def failpoint(name):
        nonlocal left
        left -= name.startswith(prefix)
        if left == 0:
            raise Killed(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault_injection, "failpoint", failpoint)
        yield


@contextmanager
def killed_at(point):
    """Expect that the block reaches a failpoint, and end it there."""

    def failpoint(name):
        if name == point:
            raise Killed(name)

    killed = pytest.raises(Killed)
    with pytest.MonkeyPatch.context() as patch, killed:
        patch.setattr(fault_injection, "failpoint", failpoint)
        yield
