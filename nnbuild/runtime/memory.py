"""How much memory the machine has for this process, and a bound on what the process takes of it."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnbuild.runtime import cgroups


def total_memory() -> int:
    """Return the bytes of memory that this process may use.

    It is the machine's memory, or the control group's limit if that is smaller, as in a container.
    """
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(installed, cgroups.memory_limit() or installed)


@contextmanager
def memory_growth_limited(size: int) -> Iterator[None]:
    """Let allocations fail once this process has grown by a number of bytes.

    The kernel refuses the memory, so that a library that keeps to no limit of its own fails
    instead of the machine. Systems that do not report a process's memory set no limit.

    Args:
        size: Bytes that the process may allocate inside the block.
    """
    in_use = _data_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [each for each in (soft, hard) if each != resource.RLIM_INFINITY]
    if in_use is None:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (min([in_use + size, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int | None:
    """Return the bytes of this process that count against the limit, if Linux tells."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = next((line.split()[1] for line in lines if line.startswith("VmData:")), None)
    return None if kibibytes is None else int(kibibytes) * 1024
