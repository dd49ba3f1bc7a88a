"""The environment of a run: versions of code and packages, processor."""

import getpass
import hashlib
import os
import platform
import socket
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from nnbuild.runtime import cgroups

_PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "pyarrow",
    "pandas",
    "prefect",
    "scikit-learn",
    "scipy",
    "pillow",
    "imagecodecs",
    "onnx",
    "onnxruntime",
)

OPERATIONS_AT_ONCE = 2
"""Number of operations that TensorFlow runs in parallel, with `training.threads` threads each."""


@cache
def code_version() -> str:
    """Return the version of nnbuild, and twelve digits of the SHA-256 of its source code."""
    package = Path(__file__).parents[1]  # of all of nnbuild, since any module can change a result
    source = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{_version('nnbuild') or '0'}+{source.hexdigest()[:12]}"


def _version(package: str) -> str | None:
    try:
        metadata = distribution(package).read_text("METADATA") or ""
    except PackageNotFoundError:
        return None
    # Not `importlib.metadata.version`, which parses the whole description of the package.
    return next(
        (
            line.partition(":")[2].strip()
            for line in metadata.splitlines()
            if line.startswith("Version:")
        ),
        None,
    )


def cache_folder() -> Path:
    """Return the user's cache folder of nnbuild, `$XDG_CACHE_HOME/nnbuild` or `~/.cache/nnbuild`.

    A relative path in the variable is ignored, as the XDG Base Directory Specification says.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "nnbuild"


def user() -> str:
    """Return who runs this process, as `user@host`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def packages() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on; None if not installed."""
    return {name: _version(name) for name in _PACKAGES}


def processors(root: Path = cgroups.ROOT) -> int:
    """Return the number of processors that this process may use, by affinity and CPU quota.

    Args:
        root: Folder with `proc/` and the control groups, which contain the quota.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux only
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(usable, cgroups.processor_limit(root) or usable)


@cache
def processor() -> dict[str, Any]:
    """Return the properties of the processor that change the result bytes of a convolution."""
    features = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                features = " ".join(sorted(line.split(":", 1)[1].split()))
                break
    except OSError:
        features = platform.processor()
    return {
        "architecture": platform.machine(),
        "features": hashlib.sha256(features.encode()).hexdigest()[:16],
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
    }


def description() -> dict[str, Any]:
    """Describe the machine for the manifest."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "host": platform.node(),
        "processors": processors(),
        "processor": processor(),
    }
