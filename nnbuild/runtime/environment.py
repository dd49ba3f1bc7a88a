"""What a run was made with: code, packages, processor."""

import hashlib
import os
import platform
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
    "onnx",
    "onnxruntime",
)

OPERATIONS_AT_ONCE = 2
"""How many operations of a graph TensorFlow runs beside each other; each has the threads that the config says."""


@cache
def code_version() -> str:
    """The version of nnbuild, and twelve digits of the sha256 of its source: it changes when the code does."""
    package = Path(__file__).parent
    source = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{_version('nnbuild') or '0'}+{source.hexdigest()[:12]}"


def _version(package: str) -> str | None:
    try:
        told = distribution(package).read_text("METADATA") or ""
    except PackageNotFoundError:
        return None
    # Not `importlib.metadata.version`, which parses a package's whole description as an e-mail first.
    return next(
        (
            line.partition(":")[2].strip()
            for line in told.splitlines()
            if line.startswith("Version:")
        ),
        None,
    )


def packages() -> dict[str, str | None]:
    """The versions of what a run's result depends on."""
    return {name: _version(name) for name in _PACKAGES}


def processors(root: Path = cgroups.ROOT) -> int:
    """Return how many processors this process may use by its affinity and its CPU quota.

    Args:
        root: Folder that holds `proc/` and the control groups, which have the quota.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(usable, cgroups.processor_limit(root) or usable)


@cache
def processor() -> dict[str, Any]:
    """What of the processor decides the bytes of a convolution: its features, and oneDNN."""
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
    """The machine, for the manifest."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "host": platform.node(),
        "processors": processors(),
        "processor": processor(),
    }
