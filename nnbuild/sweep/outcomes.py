"""What a sweep tries, and what comes of it."""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

Report = Callable[[int, float], bool]
"""Given an epoch (from 1) and the objective, whether to give up."""


class Trial(BaseModel):
    """What is tried.

    Attributes:
        number: from 0.
        values: of the settings that vary, by dotted key.
    """

    model_config = ConfigDict(frozen=True)
    number: int
    values: dict[str, JsonValue]


class TrialResult(BaseModel):
    """What came of a trial.

    Attributes:
        state: `finished` if each of its runs succeeded; `pruned` or `failed` at the first that did not.
        value: mean over its runs of the objective of the network that was kept; None unless finished.
        runs: ids of its runs, by seed.
        error: why it is not finished.
    """

    model_config = ConfigDict(frozen=True)
    number: int
    values: dict[str, JsonValue]
    state: Literal["finished", "pruned", "failed"]
    value: float | None
    runs: tuple[str, ...]
    error: str | None = None
