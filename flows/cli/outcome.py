"""What the gate decided on a run, and what to do next: the last lines of `nnbuild run`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from flows.cli.console import print_line

if TYPE_CHECKING:
    from nnbuild.store import Store
    from nnbuild.store.manifests import Manifest
    from nnbuild.store.step_results import Decided


def summarize_outcome(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Return the outcome of a committed run, its reason, and the next step as a sentence."""
    decided = manifest.steps.decide
    if decided is None or decided.outcome is None:  # committed by an earlier version
        outcome, reason = "promoted" if manifest.row.promoted else "rejected", ""
    else:
        outcome, reason = decided.outcome, decided.reason
    return {
        "outcome": outcome,
        "reason": reason,
        "next": _next_step(store, manifest, decided, outcome),
    }


def print_outcome(summary: dict[str, Any]) -> None:
    """Print whether a run was promoted and why, and what to do next."""
    verdict = "promoted" if summary["outcome"] == "promoted" else "not promoted"
    print_line(f"{verdict}: {summary['reason']}" if summary["reason"] else verdict)
    print_line(f"next: {summary['next']}")


def store_option(store: Store) -> str:
    """Return the option that names a store, with a space before it; empty for the default one."""
    from nnbuild.store import Store as AnyStore

    is_default = str(store.root) == str(AnyStore().root)
    return "" if is_default else f" --store {shlex.quote(str(store.root))}"


def _next_step(store: Store, manifest: Manifest, decided: Decided | None, outcome: str) -> str:
    where = store_option(store)
    promote = f"nnbuild promote {manifest.run_id} --note TEXT{where}"
    if manifest.fell_back:
        requested = manifest.settings.dataset.name
        return f"make {requested} available by --data-dir, or train with --dataset digits"
    if decided is not None and decided.pinned and outcome == "skipped":
        dataset = manifest.row.dataset
        return f"unpin the champion by nnbuild champion --unpin --dataset {dataset}{where}"
    by_hand = f"promote it by hand: {promote}"
    steps = {
        "promoted": f"score with it by nnbuild score --input PATH{where}",
        "kept-identical": f"nothing to do: the champion predicts the same; or {by_hand}",
        "not-enough-evidence": f"{_more_evidence(decided)}, or {by_hand}",
        "gate-off": f"set gate.enabled to true, or {by_hand}",
    }
    return steps.get(outcome, by_hand)


def _more_evidence(decided: Decided | None) -> str:
    """Return what would give the gate enough evidence."""
    figures = decided.figures if decided else {}
    if "needed" in figures and "examples" in figures:
        more = max(1, round(figures["needed"] - figures["examples"]))
        return f"test on about {more:,} more images"
    required = -figures.get("margin", 0.0)
    on_test_images = (figures.get(name, required) for name in ("bound", "anchor_bound"))
    if "golden_bound" in figures and min(on_test_images) >= required:
        return "add images to gate.golden"
    return "test on more images"
