"""The steps of a run in order, for all code that runs, resumes or interrupts a run.

The name of a step and the type of its result belong together, see
`nnbuild.store.step_results`; this module adds the function of each step and what it needs.
"""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from nnbuild.store.step_results import (
    BuiltModel,
    Calibrated,
    CheckedData,
    CompiledModel,
    Decided,
    Evaluated,
    ExportedModel,
    FittedModel,
    HistoryTable,
    LoadedData,
    Reported,
    Scored,
    StepResult,
)


class Step(NamedTuple):
    """A step of a run.

    Attributes:
        result: Type of the step's result.
        module: Module of the step's function, imported when the step runs: most need TensorFlow,
            which takes seconds.
        arguments: Types of the earlier results that the function takes, after the run.
        after: Types of the further results whose files the function reads.
    """

    result: type[StepResult]
    module: str
    arguments: tuple[type[StepResult], ...] = ()
    after: tuple[type[StepResult], ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the step, which its function has too."""
        return self.result.step

    def function(self) -> Callable[..., StepResult]:
        """Import the function of the step."""
        function: Callable[..., StepResult] = getattr(import_module(self.module), self.name)
        return function


_DATA, _TRAINING = "nnbuild.pipeline.data", "nnbuild.pipeline.training"
_EVALUATION = "nnbuild.pipeline.evaluation"

TRAINING_STEPS = (
    Step(LoadedData, _DATA),
    Step(CheckedData, _DATA, (LoadedData,)),
    Step(BuiltModel, _TRAINING, (LoadedData,), after=(CheckedData,)),
    Step(CompiledModel, _TRAINING, (LoadedData, BuiltModel)),
    Step(FittedModel, _TRAINING, (LoadedData, CompiledModel)),
    Step(HistoryTable, _TRAINING, (FittedModel,)),
    Step(ExportedModel, "nnbuild.pipeline.export", (LoadedData, FittedModel)),
    Step(Evaluated, _EVALUATION, (LoadedData, FittedModel)),
    Step(Calibrated, _EVALUATION, (LoadedData, FittedModel)),
    Step(Scored, _EVALUATION, (LoadedData, FittedModel)),
)
"""The steps before the promotion decision, which depend on the run alone."""

DECISION_STEPS = (
    Step(
        Decided,
        "nnbuild.pipeline.promotion",
        (LoadedData,),
        after=(FittedModel, ExportedModel, Evaluated, Scored),
    ),
    Step(Reported, "nnbuild.pipeline.reporting", (LoadedData,), after=(Calibrated, Decided)),
)
"""The steps that depend on the champion as well; `nnbuild.pipeline.commit` follows them."""

STEPS = TRAINING_STEPS + DECISION_STEPS
