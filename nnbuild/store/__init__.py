"""The store of datasets, runs and tables: atomic writes, and reads of what is committed."""

from nnbuild.store.run import Run
from nnbuild.store.store import Store, UnfinishedRun, default_root

__all__ = ["Run", "Store", "UnfinishedRun", "default_root"]
