"""The champion gate: does the challenger become the champion?

The one decision that looks at the test set. The hypothesis is that challenger and champion are equally good; the
default rule promotes unless it can be rejected against the challenger, the strict one only if it can be rejected
for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation.significance import McNemarResult, mcnemar_test


@dataclass(frozen=True)
class Candidate:
    """What the gate knows of a run.

    Attributes:
        run_id: its id.
        test_set: sha256 of the test images and labels that it was evaluated on; None if that is not known any more.
        correct: Whether each test example is classified correctly, bool, shape (n,), by example_id.
        metrics: its figures over all classes.
        recalls: by class.
    """

    run_id: str
    test_set: str | None
    correct: NDArray[np.bool_]
    metrics: Mapping[str, float]
    recalls: Mapping[int, float]


@dataclass(frozen=True)
class Decision:
    """What the gate says.

    Attributes:
        promote: whether the challenger becomes the champion.
        reason: why, in a sentence.
        paired: the comparison; None if there was nothing to compare with.
        recall_drop: the largest drop of a class's recall; None likewise.
        recall_label: that class.
    """

    promote: bool
    reason: str
    paired: McNemarResult | None = None
    recall_drop: float | None = None
    recall_label: int | None = None


def decide(challenger: Candidate, champion: Candidate | None, config: GateConfig) -> Decision:
    """Decide on a challenger.

    Args:
        challenger: the new run.
        champion: the one to beat; None if there is none yet.
        config: the bounds and the rule.
    """
    refused = _below_the_floor(challenger, config)
    if champion is None:
        return Decision(not refused, refused or "there was no champion")
    if challenger.test_set is None or challenger.test_set != champion.test_set:
        told = "the champion was evaluated on other test images, so the two cannot be compared"
        if config.on_other_data == "promote":
            return Decision(not refused, refused or f"{told}, and such a challenger is promoted")
        return Decision(promote=False, reason=refused or f"{told}; nnbuild promote decides by hand")
    paired = mcnemar_test(champion.correct, challenger.correct)
    label, drop = _largest_drop(challenger, champion)
    reason = refused or _too_much_worse(drop, label, config) or _by_the_test(paired, config)
    return Decision(reason is None, reason or _in_favour(paired, config), paired, drop, label)


def _below_the_floor(challenger: Candidate, config: GateConfig) -> str:
    accuracy, error = (
        challenger.metrics["accuracy"],
        challenger.metrics["expected_calibration_error"],
    )
    if accuracy < config.min_accuracy:
        return f"its accuracy {accuracy:.4f} is below the floor of {config.min_accuracy:g}"
    if error > config.max_calibration_error:
        return f"its calibration error {error:.4f} is above {config.max_calibration_error:g}"
    return ""


def _largest_drop(challenger: Candidate, champion: Candidate) -> tuple[int, float]:
    drops = {
        label: champion.recalls[label] - recall for label, recall in challenger.recalls.items()
    }
    label = max(drops, key=lambda each: drops[each])
    return label, drops[label]


def _too_much_worse(drop: float, label: int, config: GateConfig) -> str:
    if drop <= config.max_recall_drop:
        return ""
    return f"its recall of class {label} is {drop:.4f} below the champion's, and {config.max_recall_drop:g} is allowed"


def _by_the_test(paired: McNemarResult, config: GateConfig) -> str | None:
    if config.rule == "not-worse" and paired.p_worse < config.significance:
        return f"it is significantly worse (p = {paired.p_worse:.2g}, below {config.significance:g}); {_counts(paired)}"
    if config.rule == "better" and paired.p_better >= config.significance:
        return f"it is not significantly better (p = {paired.p_better:.2g}); {_counts(paired)}"
    return None


def _in_favour(paired: McNemarResult, config: GateConfig) -> str:
    if config.rule == "better":
        return f"it is significantly better (p = {paired.p_better:.2g}); {_counts(paired)}"
    return f"it is not significantly worse (p = {paired.p_worse:.2g}); {_counts(paired)}"


def _counts(paired: McNemarResult) -> str:
    return (
        f"of {paired.examples:,} test images {paired.only_challenger:,} are right by it alone, "
        f"{paired.only_champion:,} by the champion alone"
    )
