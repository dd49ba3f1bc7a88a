"""How far a run in staging has come."""

from nnbuild import schemas
from nnbuild.results import FittedModel
from nnbuild.steps.once import staged_table
from nnbuild.store.run import Run
from nnbuild.store.tables import read_table


def epochs_on_disk(run: Run) -> int:
    """How many epochs the history on the disk has, of a run that did not finish its fit."""
    path = staged_table(run, "history")
    return len(read_table(path, schemas.HISTORY)["epoch"].unique()) if path.exists() else 0


def is_fitted(run: Run) -> bool:
    """Whether the fit is over."""
    return run.recall("fit_model", FittedModel) is not None


def has_checkpoints(run: Run) -> bool:
    """Whether the fit has begun and can be gone on with."""
    return any((run.folder / "checkpoints").glob("*.json"))
