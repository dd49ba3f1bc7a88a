"""Where everything is kept, and how it gets there: whole, or not at all."""

from nnbuild.store.run import Run
from nnbuild.store.store import Store, UnfinishedRun, default_root

__all__ = ["Run", "Store", "UnfinishedRun", "default_root"]
