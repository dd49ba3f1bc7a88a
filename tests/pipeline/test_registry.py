"""The registry of steps agrees with the functions and the results of the steps."""

import inspect
import typing

import pytest

from nnbuild import pipeline
from nnbuild.pipeline.registry import STEPS
from nnbuild.store.step_results import MANIFEST_STEPS, Reported


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_step_matches_its_function(step):
    function = getattr(pipeline, step.name)
    hints = typing.get_type_hints(inspect.unwrap(function))
    positional = [
        hints[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    assert function.__name__ == step.name
    assert hints["return"] is step.result
    assert positional[1:] == list(step.arguments)  # the run comes first


def test_step_needs_earlier_results():
    earlier = set()
    for step in STEPS:
        assert {*step.arguments, *step.after} <= earlier, step.name
        earlier.add(step.result)


def test_manifest_has_all_but_report():
    assert [step.name for step in STEPS if step.result is not Reported] == list(MANIFEST_STEPS)


def test_unknown_step_raises():
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = pipeline.fit
