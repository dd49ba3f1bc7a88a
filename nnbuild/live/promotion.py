"""Promote a challenger once the labels of production show that it is more accurate."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple

from nnbuild.errors import ConfigError
from nnbuild.evaluation.sequential import examples_for_evidence, win_evidence
from nnbuild.live.shadows import PairedCounts, paired_counts
from nnbuild.scoring.config import NEWEST
from nnbuild.scoring.shadow import difference, newest_challenger
from nnbuild.store import Store, champion
from nnbuild.store.ids import require_id

Outcome = Literal["promoted", "rejected", "not-enough-evidence", "kept-identical", "skipped"]


@dataclass(frozen=True)
class LiveDecision:
    """Result of comparing a challenger with the champion on the labels of production.

    Attributes:
        run_id: ID of the challenger; empty if there is none.
        champion: ID of the champion that it was compared with.
        dataset: Dataset of both.
        outcome: `promoted`; `rejected` if the challenger is shown to be less accurate;
            `not-enough-evidence`; `kept-identical` if it is the champion; `skipped` if a person
            has pinned the champion, or there is no challenger.
        reason: Reason, as a sentence without a full stop.
        counts: Labelled examples that both have scored.
        evidence: Evidence that the challenger is better, an e-value; None without a comparison.
        needed: Estimated number of labelled examples that the evidence needs; None if the
            challenger is not ahead, or the evidence suffices.
        threshold: Evidence at which the challenger is promoted; None without a comparison.
    """

    run_id: str
    champion: str
    dataset: str
    outcome: Outcome
    reason: str
    counts: PairedCounts = field(default_factory=PairedCounts)
    evidence: float | None = None
    needed: int | None = None
    threshold: float | None = None


def promote_if_better(
    store: Store, run_id: str, author: champion.Author, *, now: datetime | None = None
) -> LiveDecision:
    """Make a challenger the champion if it is shown to be more accurate in production.

    It is promoted once the evidence reaches 1 / `gate.significance` of its settings. So the
    probability that it is ever promoted over a champion that is at least as accurate is at most
    `gate.significance`, however often the function is called; see
    `nnbuild.evaluation.sequential.win_evidence`. It is not pinned, so that the gate may replace it.

    Args:
        store: Store of the runs, the scoring jobs and the labels.
        run_id: ID of the challenger, or `newest` for the newest run that was not promoted.
        author: Person on whose behalf it is promoted. A note is added to the reason.
        now: Time of the change, with a time zone; the current time if not given.

    Raises:
        ConfigError: The challenger has images of another size, other classes or preprocessing.
        StoreError: There is no such run, it failed or was trained on a fallback dataset, or its
            dataset has no champion; or the champion has changed meanwhile.
    """
    if run_id == NEWEST:
        dataset, present = champion.only_current(store)
        found = newest_challenger(store, store.manifest(present))
        if found is None:
            return LiveDecision("", present, dataset, "skipped", "no run is left to be promoted")
        run_id = found
    else:
        dataset = champion.dataset_of(store, require_id(run_id))
        present = champion.require(store, dataset)
    if run_id == present:
        return LiveDecision(
            run_id, present, dataset, "kept-identical", "it is the champion already"
        )
    mine, theirs = store.manifest(present), store.manifest(run_id)
    if (reason := difference(mine, theirs)) is not None:
        raise ConfigError(f"run {run_id} cannot be compared with the champion: {reason}")
    days = paired_counts(store, only=(present, run_id)).get((present, run_id), {})
    counts = sum(days.values(), PairedCounts())
    threshold = 1 / theirs.settings.gate.significance
    decision = LiveDecision(run_id, present, dataset, *judge(counts, threshold), threshold)
    if (pinned := champion.pin(store, dataset)) is not None:
        reason = f"{champion.pin_reason(dataset, pinned)}; without the pin: {decision.outcome}"
        return replace(decision, outcome="skipped", reason=f"{reason}, {decision.reason}")
    if decision.outcome == "promoted":
        note = f"{author.note}; {decision.reason}" if author.note else decision.reason
        champion.replace(store, run_id, author._replace(note=note), expected=present, now=now)
    return decision


class Verdict(NamedTuple):
    """What the labels of production say about a challenger; see `LiveDecision`."""

    outcome: Outcome
    reason: str
    counts: PairedCounts
    evidence: float
    needed: int | None = None


def judge(counts: PairedCounts, threshold: float) -> Verdict:
    """Decide whether a challenger is shown to be more accurate, or less.

    Args:
        counts: Labelled examples that it and the champion have scored.
        threshold: Evidence that is needed.
    """
    won, lost = counts.only_challenger, counts.only_champion
    evidence, against = counts.evidence, win_evidence(lost, won)
    seen = (
        f"of {counts.labelled:,} labelled images, only it classifies {won:,} correctly, only the "
        f"champion {lost:,}"
    )
    if evidence >= threshold:
        reason = f"more accurate in production: {seen}; evidence {evidence:.3g}"
        return Verdict("promoted", reason, counts, evidence)
    if against >= threshold:
        reason = f"less accurate in production: {seen}; evidence {against:.3g}"
        return Verdict("rejected", reason, counts, evidence)
    if not counts.labelled:
        reason = "no labelled image was scored by both; score with it as the shadow"
        return Verdict("not-enough-evidence", reason, counts, evidence)
    needed = examples_for_evidence(won, lost, counts.labelled, threshold)
    ahead = "it is not ahead" if needed is None else f"about {needed:,} images would be needed"
    reason = f"{seen}; evidence {evidence:.3g} of {threshold:.3g}: {ahead}"
    return Verdict("not-enough-evidence", reason, counts, evidence, needed)
