"""The last lines of `nnbuild run`: what the gate decided, and what to do next."""

import pytest
from cloned_runs import clone_run
from command_line import call

from flows.cli.outcome import print_outcome, summarize_outcome
from nnbuild.store import Store

FIGURES = {"examples": 300.0, "needed": 1300.0}
GOLDEN = {"examples": 300.0, "margin": 0.005, "bound": 0.01, "golden_bound": -0.02}


def decided_as(store, **changes):
    """Return the manifest of the store's run with another decision."""
    manifest = store.manifest(store.run_ids()[-1])
    decided = manifest.steps.decide.model_copy(update={"reason": "because", **changes})
    steps = manifest.steps.model_copy(update={"decide": decided})
    return manifest.model_copy(update={"steps": steps})


@pytest.mark.parametrize(
    ("decision", "line", "advice"),
    [
        ({"outcome": "promoted"}, "promoted: because", "nnbuild score --input PATH"),
        ({"outcome": "rejected"}, "not promoted: because", "nnbuild promote RUN --note TEXT"),
        ({"outcome": "kept-identical"}, "not promoted: because", "nothing to do"),
        (
            {"outcome": "not-enough-evidence", "figures": FIGURES},
            "not promoted: because",
            "test on about 1,000 more images, or promote it by hand",
        ),
        ({"outcome": "not-enough-evidence", "figures": {}}, "not promoted", "test on more images"),
        ({"outcome": "not-enough-evidence", "figures": GOLDEN}, "not promoted", "to gate.golden"),
        (
            {"outcome": "skipped", "pinned": True},
            "not promoted: because",
            "nnbuild champion --unpin --dataset small",
        ),
        ({"outcome": "gate-off"}, "not promoted: because", "set gate.enabled to true"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["outcome"],
)
def test_outcome_says_what_to_do(store, capsys, decision, line, advice):
    manifest = decided_as(store, **decision)
    print_outcome(summarize_outcome(store, manifest))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(line)
    assert advice.replace("RUN", manifest.run_id) in second
    if "nnbuild " in second:
        assert second.endswith(f"--store {store.root}")


def test_outcome_of_fallback_names_the_dataset(store):
    run_id = clone_run(store, store.run_ids()[0], fallback=True)
    summary = summarize_outcome(store, store.manifest(run_id))
    assert summary["next"].startswith("make mnist available")


def test_outcome_of_default_store_has_no_option(store, monkeypatch):
    monkeypatch.setenv("NNBUILD_STORE", str(store.root))
    summary = summarize_outcome(Store(), decided_as(store, outcome="rejected"))
    assert "--store" not in summary["next"]


def test_runs_show_the_champion(store, capfd):
    (first,) = store.run_ids()
    second = clone_run(store, first)
    shown = call(capfd, "runs", "--store", store.root)
    lines = {line.split()[0]: line.split() for line in shown.out.splitlines()}
    assert (lines[first][-1], lines[second][-1]) == ("yes", "no")
    call(capfd, "promote", second, "--store", store.root)
    rows = call(capfd, "runs", "--store", store.root, "--json").json["runs"]
    assert [(row["champion"], row["pinned"]) for row in rows] == [(False, False), (True, True)]
    shown = call(capfd, "runs", "--store", store.root)
    assert shown.out.splitlines()[-1].split()[-1] == "pinned"
