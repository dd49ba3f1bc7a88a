"""The champion gate: decide whether a challenger becomes the champion.

It is the only decision that uses the test set. The rule `not-worse` promotes a challenger whose
accuracy is shown to be at most a margin below the champion's, the rule `better` one that is shown
to be more accurate. Each rule promotes a challenger that it should not with a probability of at
most `gate.significance`, at every size of the test set.

Small losses must not add up over many promotions. So the challenger must also be shown to be at
most the margin below the anchor, a past champion or the champion itself. The first run of a chain
is its anchor; a promoted run becomes the anchor if it is significantly better than the present one,
at `gate.significance` divided by the nights of a year. Whatever the accuracies of the challengers:

1. In any night, a run whose accuracy is more than the margin below the champion's or the anchor's
   is promoted with a probability of at most `gate.significance`, however long the chain is. It has
   to pass the tests against both, and each of them has that level (an intersection-union test:
   Berger, Technometrics 24, 1982, 295-300).
2. The probability that the accuracy of the anchor falls at all within a year of nights is at most
   `gate.significance`: the sum over 365 nights.
3. So losses do not add up: after T nights, the champion is more than margin + x below the best
   anchor of the year with a probability of at most `gate.significance` + T q(x). Here q(x) is the
   probability that a run with such a loss passes the test once; it falls like the tail of a normal
   distribution. A walk with steps of one margin would lose T margins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation.noninferiority import (
    examples_needed,
    lower_bound,
    p_value,
)
from nnbuild.evaluation.significance import McNemarResult, holm_correction, mcnemar_test
from nnbuild.evaluation.slices import Slice

_NIGHTS = 365  # over which the probability of a wrong change of the anchor is shared out

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
        identical: Whether both have the same weights, or predict the same class for every image.
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
        reason: Reason, as a sentence without a full stop.
        paired: Comparison with the champion; None if there was none to compare with.
        champion_accuracy: Accuracy of the champion on the compared images; None without a
                comparison.
        recall_drop: Drop of the recall of the class for which the evidence of a drop is the
            strongest; None without a comparison.
        recall_label: That class; None without a comparison.
        recall_p: P-value of that drop, corrected for the number of classes; small if the drop is
            larger than the allowed one.
        margin: Largest loss of accuracy that is allowed; None without a comparison.
        bound: Lower confidence bound of the difference from the champion.
        needed: Number of test images that an equally good challenger would need to pass; None if
            that is not what is missing.
        anchor: ID of the past champion that the challenger was compared with as well.
        anchor_bound: Lower confidence bound of the difference from the anchor.
        golden_bound: Lower confidence bound of the difference on the golden set.
        next_anchor: ID of the anchor for the challengers of this run; None if it is not promoted.
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
    next_anchor: str | None = None
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
    anchor: PairedResult | Incomparable | None = None,
    golden: PairedResult | None = None,
    slices: Sequence[Slice] = (),
) -> Decision:
    """Decide whether a challenger becomes the champion.

    Args:
        challenger: The new run.
        champion: Its comparison with the present champion; None if there is none yet.
        config: Thresholds and rule.
        anchor: Its comparison with the anchor of the champion; None if that is the champion
            itself. If the two cannot be compared, the champion becomes the anchor.
        golden: Its comparison with the champion on the golden set; None if there is no such set.
        slices: Its comparison with the champion on the slices of the columns of `gate.slices`.
    """
    missed = _missed_threshold(challenger, config)
    if champion is None:
        if missed:
            return Decision("rejected", missed)
        return Decision("promoted", "no previous champion", next_anchor=challenger.run_id)
    if isinstance(champion, Incomparable):
        reason = missed or f"{champion.reason}; promote it manually by `nnbuild promote`"
        return Decision("rejected" if missed else "skipped", reason)
    recall = _test_recalls(champion, config)
    with_champion = _compare(champion, "the champion", config)
    remark = ""
    if isinstance(anchor, Incomparable):
        remark, anchor = f"; not compared with anchor {anchor.run_id}: {anchor.reason}", None
    with_anchor = None if anchor is None else _compare(anchor, "the anchor", config)
    on_golden = None
    if golden is not None:
        on_golden = _compare(golden, "the champion", config, images="images of gate.golden")
    refusal = _first_refusal(
        _identity(champion) if champion.identical else None,
        _Refusal("rejected", missed) if missed else None,
        recall.refusal(config),
        _refusal_of_slices(slices, config),
        with_champion.refusal(config, must_be_better=config.rule == "better"),
        None if with_anchor is None else with_anchor.refusal(config),
        # `needed` is a number of test images.
        None if on_golden is None else _without_needed(on_golden.refusal(config)),
    )
    return Decision(
        refusal.outcome if refusal else "promoted",
        refusal.reason if refusal else with_champion.success(config) + remark,
        with_champion.paired,
        champion_accuracy=float(champion.other.mean()),
        recall_drop=recall.drop,
        recall_label=recall.label,
        recall_p=recall.p_value,
        margin=config.margin,
        bound=with_champion.bound,
        needed=refusal.needed if refusal else None,
        anchor=None if anchor is None else anchor.run_id,
        anchor_bound=None if with_anchor is None else with_anchor.bound,
        golden_bound=None if on_golden is None else on_golden.bound,
        next_anchor=None if refusal else _next_anchor(challenger, anchor or champion, config),
        rescored=champion.rescored,
        left_out=champion.left_out,
    )


class _Refusal(NamedTuple):
    """A reason not to promote, and the number of test images that would be needed instead."""

    outcome: Outcome
    reason: str
    needed: int | None = None


def _identity(champion: PairedResult) -> _Refusal:
    images = f"each of the {len(champion.labels):,} compared" if champion.left_out else "every"
    return _Refusal(
        "kept-identical",
        f"the same predictions as the champion's: both predict the same class for {images} test "
        f"image{'s' if champion.left_out else ''}",
    )


def _without_needed(refusal: _Refusal | None) -> _Refusal | None:
    return None if refusal is None else refusal._replace(needed=None)


def _first_refusal(*refusals: _Refusal | None) -> _Refusal | None:
    """Return the first refusal, but one for missing evidence only if there is no other."""
    objections = [each for each in refusals if each is not None]
    certain = [each for each in objections if each.outcome != "not-enough-evidence"]
    return next(iter([*certain, *objections]), None)


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


def _refusal_of_slices(slices: Sequence[Slice], config: GateConfig) -> _Refusal | None:
    """Refuse a challenger that is worse in a slice, and name the one with the most evidence."""
    tested = [each for each in slices if each.p_corrected is not None]
    worst = min(tested, key=lambda each: (each.p_corrected, each.difference), default=None)
    if worst is None or float(worst.p_corrected or 0.0) > config.significance:
        return None
    name = "without a value" if worst.value is None else repr(worst.value)
    drop = -100 * float(worst.difference or 0.0)
    return _Refusal(
        "rejected",
        f"its accuracy for {worst.column_name} {name} is {drop:.2f} points below the champion's, "
        f"significantly more than {_points(config.margin)} points "
        f"(p = {worst.p_corrected:.2g}, corrected for {len(tested)} slices; "
        f"{worst.compared:,} test images)",
    )


class _RecallTest(NamedTuple):
    """Test of the class for which the evidence of a drop of the recall is the strongest."""

    label: int
    drop: float
    p_value: float

    def refusal(self, config: GateConfig) -> _Refusal | None:
        if self.p_value > config.significance:
            return None
        return _Refusal(
            "rejected",
            f"its recall of class {self.label} is {self.drop:.4f} below the champion's, "
            f"significantly more than {config.max_recall_drop:g} (p = {self.p_value:.2g}, "
            "corrected for the number of classes)",
        )


def _test_recalls(champion: PairedResult, config: GateConfig) -> _RecallTest:
    """Test for each class whether its recall drops by more than the allowed drop."""
    labels, index, examples = np.unique(champion.labels, return_inverse=True, return_counts=True)
    lost, won = (
        np.bincount(index[each], minlength=len(labels))
        for each in (champion.other & ~champion.challenger, champion.challenger & ~champion.other)
    )
    drops = (lost - won) / examples
    p_values = [
        # A drop in the sample that is allowed is never significant.
        1.0
        if drops[each] <= config.max_recall_drop
        else p_value(
            int(lost[each]),
            int(won[each]),
            int(examples[each]),
            difference=config.max_recall_drop,
            significance=config.significance / len(labels),
        )
        for each in range(len(labels))
    ]
    corrected = holm_correction(p_values)
    strongest = min(range(len(labels)), key=lambda each: (corrected[each], -drops[each]))
    return _RecallTest(int(labels[strongest]), float(drops[strongest]), corrected[strongest])


@dataclass(frozen=True)
class _Comparison:
    """Comparison of the challenger with another run.

    Attributes:
        other: What the challenger is compared with, as the object of a sentence.
        images: What the images are called.
        paired: McNemar tests.
        bound: Lower confidence bound of the difference.
    """

    other: str
    images: str
    paired: McNemarResult
    bound: float

    def refusal(self, config: GateConfig, *, must_be_better: bool = False) -> _Refusal | None:
        paired, margin = self.paired, _points(config.margin)
        if must_be_better:
            if paired.p_better < config.significance:
                return None
            reason = f"not significantly better than {self.other} (p = {paired.p_better:.2g})"
            return _Refusal("rejected", f"{reason}; {self._counts}")
        if self.bound >= -config.margin:
            return None
        won, lost, level = paired.only_challenger, paired.only_champion, config.significance
        p_worse = p_value(lost, won, paired.examples, difference=config.margin, significance=level)
        if p_worse <= level:
            reason = f"less accurate than {self.other} by more than {margin} points"
            details = f"{_difference(paired)}, p = {p_worse:.2g}"
            return _Refusal("rejected", f"{reason} ({details}); {self._counts}")
        goal = f"to show that it is at most {margin} points less accurate than {self.other}"
        details = f"{_difference(paired)}, lower bound {100 * self.bound:+.2f}"
        needed = examples_needed(
            won, lost, paired.examples, margin=config.margin, significance=level
        )
        if needed <= paired.examples:
            reason = f"not enough evidence in {paired.examples:,} {self.images} {goal}"
            return _Refusal("not-enough-evidence", f"{reason} ({details})")
        reason = (
            f"not enough evidence: {paired.examples:,} {self.images}, about {needed:,} would be "
            f"needed {goal}"
        )
        return _Refusal("not-enough-evidence", f"{reason} ({details})", needed)

    def success(self, config: GateConfig) -> str:
        """Return the reason for a promotion."""
        if config.rule == "better":
            reason = f"significantly better than {self.other} (p = {self.paired.p_better:.2g})"
        else:
            reason = (
                f"at most {_points(config.margin)} points less accurate than {self.other} "
                f"({_difference(self.paired)}, lower bound {100 * self.bound:+.2f})"
            )
        return f"{reason}; {self._counts}"

    @property
    def _counts(self) -> str:
        return (
            f"of {self.paired.examples:,} {self.images}, only this run classifies "
            f"{self.paired.only_challenger:,} correctly, only the other "
            f"{self.paired.only_champion:,}"
        )


def _compare(
    result: PairedResult, other: str, config: GateConfig, *, images: str = "test images"
) -> _Comparison:
    paired = mcnemar_test(result.other, result.challenger)
    bound = lower_bound(
        paired.only_challenger, paired.only_champion, paired.examples, config.significance
    )
    return _Comparison(other, images, paired, bound)


def _next_anchor(challenger: Candidate, anchor: PairedResult, config: GateConfig) -> str:
    """Return the anchor after a promotion: the challenger only if it is clearly better."""
    paired = mcnemar_test(anchor.other, anchor.challenger)
    clearly_better = paired.p_better < config.significance / _NIGHTS
    return challenger.run_id if clearly_better else anchor.run_id


def _points(fraction: float) -> str:
    return f"{100 * fraction:g}"


def _difference(paired: McNemarResult) -> str:
    return f"difference {100 * paired.difference:+.2f} points"
