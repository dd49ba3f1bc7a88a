"""The champion gate: decide whether a challenger becomes the champion.

It is the only decision that uses the test set. The null hypothesis is that challenger and champion
are equally good. The rule `not-worse` promotes unless the challenger is significantly worse, the
rule `better` only if it is significantly better.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation.significance import McNemarResult, mcnemar_test

Outcome = Literal[
    "promoted", "rejected", "kept-identical", "not-enough-evidence", "skipped", "gate-off"
]
"""What the gate did: only `promoted` changes the champion."""


@dataclass(frozen=True)
class Candidate:
    """A run that the gate decides on.

    Attributes:
        run_id: ID of the run.
        metrics: Metrics on its test images over all classes, by name.
    """

    run_id: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class PairedResult:
    """Predictions of a challenger and of another run on the same images.

    Attributes:
        run_id: ID of the other run.
        labels: True class of each image, int16, shape (n,), n of 1 or more.
        challenger: Whether the challenger classifies each image correctly, bool, shape (n,).
        other: The same for the other run.
        rescored: Number of images that the other model scored for this comparison; 0 if its stored
            predictions were used.
        left_out: Number of test images left out because either run trained or validated on them.
        identical: Whether both have the same weights, or predict the same class for every test
            image.
    """

    run_id: str
    labels: NDArray[np.int16]
    challenger: NDArray[np.bool_]
    other: NDArray[np.bool_]
    rescored: int = 0
    left_out: int = 0
    identical: bool = False


@dataclass(frozen=True)
class Incomparable:
    """A run that cannot be compared with the challenger.

    Attributes:
        run_id: ID of the run.
        reason: Reason, as a sentence without a full stop.
    """

    run_id: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """Decision of the gate.

    Attributes:
        outcome: What the gate did.
        reason: Reason, as a sentence.
        paired: Comparison with the champion; None if there was none to compare with.
        champion_accuracy: Accuracy of the champion on the compared images; None without a
            comparison.
        recall_drop: Largest drop of the recall of a class; None without a comparison.
        recall_label: Class with that drop; None without a comparison.
        recall_p: P-value of that drop, corrected for the number of classes.
        margin: Largest loss of accuracy that the rule allows.
        bound: Lower confidence bound of the difference from the champion.
        needed: Number of test images that the decision would need; None if there were enough.
        anchor: ID of the past champion that the challenger was compared with as well.
        anchor_bound: Lower confidence bound of the difference from the anchor.
        golden_bound: Lower confidence bound of the difference on the golden set.
        rescored: Number of images that the champion scored for the comparison.
        left_out: Number of test images left out of the comparison.
    """

    outcome: Outcome
    reason: str
    paired: McNemarResult | None = None
    champion_accuracy: float | None = None
    recall_drop: float | None = None
    recall_label: int | None = None
    recall_p: float | None = None
    margin: float | None = None
    bound: float | None = None
    needed: int | None = None
    anchor: str | None = None
    anchor_bound: float | None = None
    golden_bound: float | None = None
    rescored: int | None = None
    left_out: int | None = None

    @property
    def promote(self) -> bool:
        """Return whether the challenger becomes the champion."""
        return self.outcome == "promoted"


def decide(
    challenger: Candidate,
    champion: PairedResult | Incomparable | None,
    config: GateConfig,
    *,
    anchor: PairedResult | None = None,
    golden: PairedResult | None = None,
) -> Decision:
    """Decide whether a challenger becomes the champion.

    Args:
        challenger: The new run.
        champion: Its comparison with the present champion; None if there is none yet.
        config: Thresholds and rule.
        anchor: Its comparison with the anchor on the same images; None if there is no other past
            champion.
        golden: Its comparison with the champion on the golden set; None if there is none.
    """
    refused = _missed_threshold(challenger, config)
    if champion is None:
        return Decision("rejected" if refused else "promoted", refused or "no previous champion")
    if isinstance(champion, Incomparable):
        reason = refused or f"{champion.reason}; promote it manually by `nnbuild promote`"
        return Decision("rejected" if refused else "skipped", reason)
    paired = mcnemar_test(champion.other, champion.challenger)
    label, drop = _largest_drop(champion)
    objection = refused or _recall_objection(drop, label, config) or _test_objection(paired, config)
    return Decision(
        "rejected" if objection else "promoted",
        objection or _reason_for_promotion(paired, config),
        paired,
        champion_accuracy=float(champion.other.mean()),
        recall_drop=drop,
        recall_label=label,
        bound=paired.low,
        anchor=None if anchor is None else anchor.run_id,
        anchor_bound=None if anchor is None else mcnemar_test(anchor.other, anchor.challenger).low,
        golden_bound=None if golden is None else mcnemar_test(golden.other, golden.challenger).low,
        rescored=champion.rescored,
        left_out=champion.left_out,
    )


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


def _largest_drop(champion: PairedResult) -> tuple[int, float]:
    fall = champion.other.astype(np.int8) - champion.challenger
    drops = {
        int(label): float(fall[champion.labels == label].mean())
        for label in np.unique(champion.labels)
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
