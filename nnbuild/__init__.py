"""Retraining of an image classifier that ends in logits, with every output a Parquet table.

The names here are what a notebook or a script needs; each is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnbuild.config.schema import RunConfig
    from nnbuild.logits import log_softmax, softmax
    from nnbuild.pipeline.run import open_run, retrain, run_context
    from nnbuild.scoring import ScoreConfig, backfill, score
    from nnbuild.store import Store
    from nnbuild.store.analysis import read_table

    __version__: str

__all__ = [
    "RunConfig",
    "ScoreConfig",
    "Store",
    "backfill",
    "log_softmax",
    "open_run",
    "read_table",
    "retrain",
    "run_context",
    "score",
    "softmax",
]

_PLACES = {
    "nnbuild.config.schema": ("RunConfig",),
    "nnbuild.logits": ("log_softmax", "softmax"),
    "nnbuild.pipeline.run": ("open_run", "retrain", "run_context"),
    "nnbuild.store.analysis": ("read_table",),
    "nnbuild.scoring": ("ScoreConfig", "backfill", "score"),
    "nnbuild.store": ("Store",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    from nnbuild.runtime.lazy_imports import attach

    return attach(name, _PLACES, __name__)


def _version() -> str:
    """Return the version of the installed package, 0 if nnbuild runs from a folder."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nnbuild")
    except PackageNotFoundError:
        return "0"
