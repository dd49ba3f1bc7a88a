"""The champion gate: decide whether a challenger becomes the champion.

It is the only decision that uses the test set. The null hypothesis is that challenger and champion
are equally good. The rule `not-worse` promotes unless the challenger is significantly worse, the
rule `better` only if it is significantly better.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation.significance import McNemarResult, mcnemar_test


@dataclass(frozen=True)
class Candidate:
    """Results of a run that the gate compares.

    Attributes:
        run_id: ID of the run.
        test_set: SHA-256 of the test images and labels of its evaluation; None if unknown.
        correct: Whether each test example is classified correctly, bool, shape (n,), by
            example_id.
        metrics: Metrics over all classes, by name.
        recalls: Recall by class.
    """

    run_id: str
    test_set: str | None
    correct: NDArray[np.bool_]
    metrics: Mapping[str, float]
    recalls: Mapping[int, float]


@dataclass(frozen=True)
class Decision:
    """Decision of the gate.

    Attributes:
        promote: Whether the challenger becomes the champion.
        reason: Reason, as a sentence.
        paired: Comparison with the champion; None if there was none to compare with.
        recall_drop: Largest drop of the recall of a class; None without a comparison.
        recall_label: Class with that drop; None without a comparison.
    """

    promote: bool
    reason: str
    paired: McNemarResult | None = None
    recall_drop: float | None = None
    recall_label: int | None = None


def decide(challenger: Candidate, champion: Candidate | None, config: GateConfig) -> Decision:
    """Decide whether a challenger becomes the champion.

    Args:
        challenger: The new run.
        champion: The present champion; None if there is none yet.
        config: Thresholds and rule.
    """
    refused = _missed_threshold(challenger, config)
    if champion is None:
        return Decision(not refused, refused or "no previous champion")
    if challenger.test_set is None or challenger.test_set != champion.test_set:
        reason = "the champion was evaluated on other test images, so the two cannot be compared"
        if config.on_test_set_change == "promote":
            return Decision(not refused, refused or f"{reason}; gate.on_test_set_change is promote")
        return Decision(
            promote=False, reason=refused or f"{reason}; promote it manually by `nnbuild promote`"
        )
    paired = mcnemar_test(champion.correct, challenger.correct)
    label, drop = _largest_drop(challenger, champion)
    objection = refused or _recall_objection(drop, label, config) or _test_objection(paired, config)
    reason = objection or _reason_for_promotion(paired, config)
    return Decision(objection is None, reason, paired, drop, label)


def _missed_threshold(challenger: Candidate, config: GateConfig) -> str:
    accuracy, error = (
        challenger.metrics["accuracy"],
        challenger.metrics["expected_calibration_error"],
    )
    if accuracy < config.min_accuracy:
        return f"its accuracy {accuracy:.4f} is below the minimum of {config.min_accuracy:g}"
    if error > config.max_calibration_error:
        return (
            f"its calibration error {error:.4f} is above the maximum of "
            f"{config.max_calibration_error:g}"
        )
    return ""


def _largest_drop(challenger: Candidate, champion: Candidate) -> tuple[int, float]:
    drops = {
        label: champion.recalls[label] - recall for label, recall in challenger.recalls.items()
    }
    label = max(drops, key=lambda each: drops[each])
    return label, drops[label]


def _recall_objection(drop: float, label: int, config: GateConfig) -> str:
    if drop <= config.max_recall_drop:
        return ""
    return (
        f"its recall of class {label} is {drop:.4f} below the champion's, more than the maximum "
        f"of {config.max_recall_drop:g}"
    )


def _test_objection(paired: McNemarResult, config: GateConfig) -> str | None:
    if config.rule == "not-worse" and paired.p_worse < config.significance:
        return (
            f"it is significantly worse (p = {paired.p_worse:.2g}, below "
            f"{config.significance:g}); {_counts(paired)}"
        )
    if config.rule == "better" and paired.p_better >= config.significance:
        return f"it is not significantly better (p = {paired.p_better:.2g}); {_counts(paired)}"
    return None


def _reason_for_promotion(paired: McNemarResult, config: GateConfig) -> str:
    if config.rule == "better":
        return f"it is significantly better (p = {paired.p_better:.2g}); {_counts(paired)}"
    return f"it is not significantly worse (p = {paired.p_worse:.2g}); {_counts(paired)}"


def _counts(paired: McNemarResult) -> str:
    return (
        f"of {paired.examples:,} test images, only it classifies {paired.only_challenger:,} "
        f"correctly, only the champion {paired.only_champion:,}"
    )
