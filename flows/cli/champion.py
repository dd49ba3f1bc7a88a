"""`nnbuild champion`, `promote` and `rollback`: the run whose model scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.app import PUBLISH, JsonOption, StoreOption, app
from flows.cli.console import print_json, print_line, print_table
from flows.cli.outcome import print_outcome, store_option
from nnbuild.errors import ConfigError

if TYPE_CHECKING:
    from nnbuild.live import LiveDecision
    from nnbuild.store import Store
    from nnbuild.store.champion import Author
    from nnbuild.store.champion_history import Change

_CHAMPION_COLUMNS = ("dataset", "run_id", "changed_at", "changed_by", "who", "pinned", "note")
_CHANGE_COLUMNS = (
    "dataset",
    "run_id",
    "previous",
    "changed_at",
    "changed_by",
    "who",
    "pinned",
    "note",
)
_MAX_NOTE_CHARACTERS = 1000

DatasetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Dataset, as `nnbuild runs` shows it.",
        show_default="the only one with a champion",
    ),
]
NoteOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Reason, recorded with the change.")
]


@app.command(rich_help_panel=PUBLISH, epilog="Example: nnbuild champion")
def champion(
    unpin: Annotated[
        bool, typer.Option("--unpin", help="Let the gate replace the champion again.")
    ] = False,
    dataset: DatasetOption = None,
    note: NoteOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the champion of each dataset and every change, newest first."""
    from nnbuild.store import Store, champion_history
    from nnbuild.store import champion as pointer

    opened = Store.open(store)
    if unpin:
        change = pointer.unpin(opened, _author(note), dataset=dataset)
        _print_change(opened, change, as_json=as_json)
        return
    if note is not None:
        raise ConfigError("--note applies to --unpin only; remove it")
    if dataset is not None:
        pointer.require(opened, dataset)
    histories = champion_history.histories(opened)
    rows = [
        {"dataset": name, **change.model_dump(mode="json")}
        for name, changes in histories.items()
        for change in changes
        if dataset in (None, name)
    ]
    changes = sorted(rows, key=lambda row: str(row["changed_at"]), reverse=True)
    newest = {row["dataset"]: row for row in rows}
    if as_json:
        only = next(iter(newest.values()))["run_id"] if len(newest) == 1 else None
        champions = {name: row["run_id"] for name, row in newest.items()}
        print_json(
            {
                "store": str(opened.root),
                "champion": only,
                "champions": champions,
                "changes": changes,
            }
        )
        return
    print_table(
        [_cells(row) for row in newest.values()],
        _CHAMPION_COLUMNS,
        f"{opened.root} has no champion yet; train one by `nnbuild run`",
    )
    if len(changes) > len(newest):
        print_line("")
        print_line("changes, newest first")
        print_table([_cells(row) for row in changes], _CHANGE_COLUMNS, "")


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"pinned": "yes" if row["pinned"] else "no"}


@app.command(
    rich_help_panel=PUBLISH,
    epilog='Example: nnbuild promote 20261123T030000000Z-4f2a1c --note "best on our own photos"',
)
def promote(
    run_id: Annotated[
        str,
        typer.Argument(
            metavar="RUN_ID",
            help="Committed run that succeeded; with --if-better also newest, the newest run that "
            "was not promoted.",
        ),
    ],
    if_better: Annotated[
        bool,
        typer.Option(
            "--if-better",
            help="Promote it only if the labels of images that it scored as a shadow show that it "
            "is more accurate than the champion; it is not pinned.",
        ),
    ] = False,
    note: NoteOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a run the champion of its dataset and pin it, whatever the promotion gate decided."""
    from nnbuild.store import Store
    from nnbuild.store import champion as pointer
    from nnbuild.store.ids import require_id

    opened = Store.open(store)
    if if_better:
        _promote_if_better(opened, run_id, note, as_json=as_json)
        return
    change = pointer.promote(opened, require_id(run_id), _author(note))
    _print_change(opened, change, as_json=as_json)


def _promote_if_better(store: Store, run_id: str, note: str | None, *, as_json: bool) -> None:
    from nnbuild.live import promote_if_better

    decision = promote_if_better(store, run_id, _author(note))
    summary = {
        "outcome": decision.outcome,
        "reason": decision.reason,
        "next": _next_step(store, decision),
    }
    if not as_json:
        print_outcome(summary)
        return
    promoted = decision.outcome == "promoted"
    print_json(
        {
            "store": str(store.root),
            "dataset": decision.dataset,
            "run_id": decision.run_id or None,
            "champion": decision.run_id if promoted else decision.champion,
            "previous": decision.champion,
            "labelled": decision.counts.labelled,
            "only_champion": decision.counts.only_champion,
            "only_challenger": decision.counts.only_challenger,
            "evidence": decision.evidence,
            "threshold": decision.threshold,
            "needed": decision.needed,
            **summary,
        }
    )


def _next_step(store: Store, decision: LiveDecision) -> str:
    where = store_option(store)
    if decision.outcome == "skipped" and decision.run_id:
        return f"unpin the champion by nnbuild champion --unpin --dataset {decision.dataset}{where}"
    if decision.outcome == "skipped":
        return f"train a challenger by nnbuild run{where}"
    if decision.outcome == "not-enough-evidence":
        return (
            f"score with --shadow {decision.run_id}, add labels by nnbuild label, and repeat this "
            "command, as often as you like"
        )
    if decision.outcome == "rejected":
        return f"train another challenger by nnbuild run{where}"
    return f"score with it by nnbuild score --input PATH{where}"


@app.command(
    rich_help_panel=PUBLISH,
    epilog='Example: nnbuild rollback --note "confuses 4 and 9 since Monday"',
)
def rollback(
    dataset: DatasetOption = None,
    note: NoteOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore the last champion that has another model, and pin it."""
    from nnbuild.store import Store
    from nnbuild.store import champion as pointer

    opened = Store.open(store)
    change = pointer.rollback(opened, _author(note), dataset=dataset)
    _print_change(opened, change, as_json=as_json)


def _author(note: str | None) -> Author:
    """Return this user as the author of a change.

    Raises:
        ConfigError: The note is too long.
    """
    from nnbuild.runtime.environment import user
    from nnbuild.runtime.text import encodable, join_lines
    from nnbuild.store.champion import Author

    if note is not None and len(note) > _MAX_NOTE_CHARACTERS:
        raise ConfigError(
            f"--note has {len(note)} characters, expected at most {_MAX_NOTE_CHARACTERS}; "
            "shorten it"
        )
    return Author(user(), encodable(join_lines(note)).strip() or None if note else None)


def _print_change(store: Store, change: Change, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {"store": str(store.root), "champion": change.run_id, **change.model_dump(mode="json")}
        )
        return
    if change.changed_by == "unpin":
        print_line(f"champion {change.run_id} is no longer pinned")
        return
    pinned = "pinned until `nnbuild champion --unpin`" if change.pinned else "not pinned"
    previous = change.previous or "none"
    print_line(f"champion {change.run_id}, previous champion {previous}, {pinned}")
