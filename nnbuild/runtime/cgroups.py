"""Read the limits of the control groups of this process, such as those of a container.

A container sees all processors and memory of its host; its limits are in the files of its control
group. Both versions are read, as Linux documents them: `cpu.max` and `memory.max` of
version 2 (Documentation/admin-guide/cgroup-v2.rst), `cpu.cfs_quota_us` and `memory.limit_in_bytes`
of version 1. A nested group is subject to the limits of its parents as well.
"""

import math
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nnbuild.errors import ConfigError, one_line

ROOT = Path("/")
_UNLIMITED_BYTES = 2**60
"""Version 1 has no value for "no limit", but uses a number near 2**63."""


class _Mount(NamedTuple):
    """A mounted hierarchy of control groups.

    Attributes:
        point: Path where it is mounted.
        root: Path within the hierarchy of what is mounted there.
    """

    point: PurePosixPath
    root: PurePosixPath


def processor_limit(root: Path = ROOT) -> int | None:
    """Return the CPU quota as a number of processors, rounded up.

    Args:
        root: Folder with `proc/` and the mounted control groups.

    Returns:
        At least 1, or None if there is no quota.
    """
    quotas = [*_limits(root, None, _quota_v2), *_limits(root, "cpu", _quota_v1)]
    return max(1, math.ceil(min(quotas))) if quotas else None


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the memory that the process may use, in bytes.

    Args:
        root: Folder with `proc/` and the mounted control groups.

    Returns:
        The smallest limit of the groups of the process, or None if there is none.
    """
    limits = [*_limits(root, None, _memory_v2), *_limits(root, "memory", _memory_v1)]
    return int(min(limits)) if limits else None


def memory_left(root: Path = ROOT) -> int | None:
    """Return how much more memory the process may use before it reaches a limit, in bytes.

    Args:
        root: Folder with `proc/` and the mounted control groups.

    Returns:
        The smallest difference in the groups of the process, or None if it is unlimited.
    """
    left = [*_limits(root, None, _left_v2), *_limits(root, "memory", _left_v1)]
    return int(min(left)) if left else None


def _limits(
    root: Path, controller: str | None, read: Callable[[Path], float | None]
) -> Iterator[float]:
    """Read a limit of the process's group and of its parent groups.

    Args:
        root: Folder with `proc/` and the mounted control groups.
        controller: Controller of version 1; None for version 2, which has one hierarchy for all.
        read: Function that returns the limit in the folder of a group, or None.
    """
    group, mount = _group(root, controller), _mount(root, controller)
    if group is None or mount is None:
        return
    inside = PurePosixPath(".")
    if group.is_relative_to(mount.root):  # not if the group is outside of the namespace
        inside = group.relative_to(mount.root)
    for folder in (inside, *inside.parents):
        limit = read(root / mount.point.relative_to("/") / folder)
        if limit is not None:
            yield limit


def _group(root: Path, controller: str | None) -> PurePosixPath | None:
    """Return the path of the process's control group within its hierarchy."""
    for line in _lines(root / "proc" / "self" / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" if controller is None else controller in controllers.split(","):
            return PurePosixPath(path)
    return None


def _mount(root: Path, controller: str | None) -> _Mount | None:
    """Return where a hierarchy is mounted; the fields are those of proc_pid_mountinfo(5)."""
    for line in _lines(root / "proc" / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind, options = before.split(), after.split(maxsplit=1)[:1], after.split()[-1:]
        expected = ["cgroup2"] if controller is None else ["cgroup"]
        has_controller = controller is None or controller in ",".join(options).split(",")
        if len(fields) > 4 and kind == expected and has_controller:
            return _Mount(_unescaped(fields[4]), _unescaped(fields[3]))
    return None


def _unescaped(path: str) -> PurePosixPath:
    """Decode octal escapes of spaces and similar characters."""
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path) or "/")


def _quota_v2(folder: Path) -> float | None:
    """Read `cpu.max`: a quota or `max`, and the period, in microseconds."""
    quota, _, period = _first_line(folder / "cpu.max").partition(" ")
    return _ratio(quota, period or "100000")


def _quota_v1(folder: Path) -> float | None:
    quota = _first_line(folder / "cpu.cfs_quota_us")
    return _ratio(quota, _first_line(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """Return quota / period; None for `max`, -1 and unreadable values."""
    numerator, denominator = _number(quota), _number(period)
    return numerator / denominator if numerator and denominator else None


def _memory_v2(folder: Path) -> float | None:
    return _bytes(folder / "memory.max")


def _memory_v1(folder: Path) -> float | None:
    return _bytes(folder / "memory.limit_in_bytes")


def _left_v2(folder: Path) -> float | None:
    return _left(folder, _memory_v2(folder), "memory.current", "inactive_file")


def _left_v1(folder: Path) -> float | None:
    return _left(folder, _memory_v1(folder), "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, limit: float | None, usage: str, reclaimable: str) -> float | None:
    """Return a limit less what is in use, not counting file pages that the kernel would drop."""
    used = _number(_first_line(folder / usage))
    if limit is None or used is None:
        return limit
    statistics = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat"))
    return max(0.0, limit - used + (_number(statistics.get(reclaimable, "")) or 0))


def _bytes(file: Path) -> float | None:
    size = _number(_first_line(file))
    return size if size is not None and size < _UNLIMITED_BYTES else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _first_line(file: Path) -> str:
    return next(iter(_lines(file)), "").strip()


def _lines(file: Path) -> list[str]:
    """Return the lines of a file; an empty list if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def total_memory() -> int:
    """Return the memory that this process may use, in bytes.

    It is the memory of the machine, or the limit of the control group if that is smaller.
    """
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(installed, memory_limit() or installed)


def available_memory() -> int:
    """Return the memory that this process may still use, in bytes.

    It is what the machine has available, or what the control group has if that is smaller, or
    `$NNBUILD_MEMORY` if that is smaller still.

    Raises:
        ConfigError: `$NNBUILD_MEMORY` is not a number.
    """
    known = next((each for each in _lines(Path("/proc/meminfo")) if "MemAvailable" in each), "")
    available = int(known.split()[1]) * 1024 if known else total_memory()
    text = os.environ.get("NNBUILD_MEMORY", "")
    given = _number(text) if text else available
    if given is None:
        raise ConfigError(
            f"NNBUILD_MEMORY is {one_line(text)!r}, expected a whole number of bytes such as "
            "2000000000; change the environment variable, or remove it"
        )
    left = memory_left()
    return min(available, total_memory(), given, available if left is None else left)


@contextmanager
def memory_growth_limited(size: int) -> Iterator[None]:
    """Limit the memory that this process may allocate in the block.

    The kernel refuses further allocations, so that a library without its own limit fails instead
    of the machine. There is no limit on systems that do not report the memory of a process.

    Args:
        size: Number of bytes that may be allocated.
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
    """Return the bytes that count against the limit; None if the system does not report them."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = next((line.split()[1] for line in lines if line.startswith("VmData:")), None)
    return None if kibibytes is None else int(kibibytes) * 1024
