"""The commands that messages suggest: the only place in the library that knows their options."""

import shlex

REPAIR = "`nnbuild doctor --repair`"
"""The command that repairs a store after a process was killed, or a file was damaged."""


def discard(name: str) -> str:
    """Return the command that discards an unfinished run or scoring job."""
    return f"`nnbuild doctor --repair --discard {name}`"


def resume_run(run_id: str, store: str) -> str:
    """Return the command that resumes a run."""
    return f"nnbuild run --resume {run_id} --store {shlex.quote(store)}"


def resume_sweep(sweep_id: str, store: str) -> str:
    """Return the command that resumes a sweep."""
    return f"nnbuild sweep --id {sweep_id} --store {shlex.quote(store)}"


def resume_scoring(score_id: str, store: str | None = None) -> str:
    """Return the command that resumes a scoring job; in the store of the reader if None."""
    option = f" --store {shlex.quote(store)}" if store else ""
    return f"nnbuild score --resume {score_id}{option}"
