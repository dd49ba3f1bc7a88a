"""`nnbuild prune` and `delete`: remove old runs and scoring jobs, or single ones."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.app import MAINTAIN, JsonOption, StoreOption, app
from flows.cli.console import print_json, print_line, print_table

if TYPE_CHECKING:
    from nnbuild.pipeline.retention import Pruned
    from nnbuild.store import Store

_PREFECT_DAYS = 30
_KINDS = {"runs": "run", "jobs": "scoring job", "parts": "dataset", "sweeps": "sweep"}

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be deleted, and how many bytes.")
]


@app.command(rich_help_panel=MAINTAIN, epilog="Example: nnbuild prune --keep 30 --dry-run")
def prune(
    keep: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Number of successful runs to keep of each dataset; also of failed runs, past "
            "champions and scoring jobs.",
        ),
    ] = None,
    keep_days: Annotated[
        int | None,
        typer.Option(
            metavar="DAYS",
            min=1,
            max=36500,
            help="Also keep everything of the last days. With --prefect: age in days from which "
            "flow runs are deleted.",
            show_default=f"with --prefect: {_PREFECT_DAYS}",
        ),
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Delete old scoring jobs with their rows, too.")
    ] = False,
    prefect: Annotated[
        bool,
        typer.Option("--prefect", help="Delete nnbuild's old flow runs from Prefect's database."),
    ] = False,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete old runs, and the data that no kept run needs."""
    from nnbuild.pipeline.retention import Pruned
    from nnbuild.store import Store

    if keep is None and (scores or not prefect):
        raise typer.BadParameter("give the number of runs to keep", param_hint="--keep")
    result, output = Pruned(), dict[str, Any]()
    if prefect:
        _start_prefect()  # before anything is deleted
    if keep is not None:
        opened = Store.open(store)
        result = _prune_store(opened, keep, keep_days, scores=scores, dry_run=dry_run)
        output["store"] = str(opened.root)
        if not as_json:
            _print_pruned(result, dry_run=dry_run)
    output |= _json_of(result, dry_run=dry_run)
    if prefect:
        output["prefect"] = _prune_prefect(keep_days or _PREFECT_DAYS, dry_run=dry_run)
        if not as_json:
            _print_prefect(output["prefect"], dry_run=dry_run)
    if as_json:
        print_json(output)


@app.command(
    rich_help_panel=MAINTAIN, epilog="Example: nnbuild delete 20261123T030000000Z-4f2a1c --dry-run"
)
def delete(
    ids: Annotated[
        list[str],
        typer.Argument(metavar="RUN_ID|SCORE_ID", help="Committed runs or scoring jobs."),
    ],
    dry_run: DryRunOption = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for a confirmation in a terminal.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete single runs or scoring jobs, and the datasets that only these runs used."""
    from datetime import UTC, datetime

    from nnbuild.pipeline import retention
    from nnbuild.store import Store

    opened, now = Store.open(store), datetime.now(UTC)
    asks = sys.stdin.isatty() and not (yes or dry_run)
    result = retention.delete(opened, ids, now=now, dry_run=dry_run or asks)
    if asks:
        _confirm(result)
        result = retention.delete(opened, ids, now=now)
    if as_json:
        print_json({"store": str(opened.root)} | _json_of(result, dry_run=dry_run))
    else:
        _print_pruned(result, dry_run=dry_run)


def _prune_store(
    store: Store, keep: int, keep_days: int | None, *, scores: bool, dry_run: bool
) -> Pruned:
    from datetime import UTC, datetime

    from nnbuild.pipeline import retention

    config = retention.RetentionConfig(keep=keep, keep_days=keep_days, scores=scores)
    return retention.prune(store, config, now=datetime.now(UTC), dry_run=dry_run)


def _start_prefect() -> None:
    """Start the embedded server, or ask the configured one.

    Raises:
        ConfigError: The server cannot be used.
    """
    from flows.embedded_server import EmbeddedServer

    with EmbeddedServer():
        import_module("tasks.flow_run_retention")  # with Prefect, while its server starts


def _prune_prefect(days: int, *, dry_run: bool) -> dict[str, int]:
    from datetime import UTC, datetime, timedelta

    from tasks.flow_run_retention import delete_flow_runs

    return delete_flow_runs(datetime.now(UTC) - timedelta(days=days), dry_run=dry_run)._asdict()


def _confirm(result: Pruned) -> None:
    """Ask in the terminal whether to delete.

    Raises:
        typer.Exit: The answer is no.
    """
    if not typer.confirm(f"Delete {result.summary()}?", err=True):
        print_line("nothing was deleted")
        raise typer.Exit(1)


def _json_of(result: Pruned, *, dry_run: bool) -> dict[str, Any]:
    values = result.model_dump(mode="json")
    deleted = {name: values[name] for name in _KINDS}
    return {
        "dry_run": dry_run,
        "deleted": deleted,
        "bytes": result.bytes,
        "kept": result.kept,
    }


def _print_pruned(result: Pruned, *, dry_run: bool) -> None:
    if dry_run:
        rows = [(kind, each) for name, kind in _KINDS.items() for each in getattr(result, name)]
        if rows:
            print_table(rows, ("to be deleted", "ID or path"), "")
    if result.kept:
        print_table(list(result.kept.items()), ("older run that is kept", "reason"), "")
    print_line(f"{'would delete' if dry_run else 'deleted'} {result.summary()}")


def _print_prefect(counts: dict[str, int], *, dry_run: bool) -> None:
    print_line(
        f"{'would delete' if dry_run else 'deleted'} {counts['flow_runs']} flow runs and "
        f"{counts['artifacts']} artifacts from Prefect's database"
    )
