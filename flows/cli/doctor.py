"""`nnbuild doctor` and `version`: check the installation, and repair a store."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.text import Text

from flows.cli.app import MAINTAIN, JsonOption, StoreOption, app
from flows.cli.console import PlainConsole, print_json, print_line, print_table
from nnbuild.errors import NnbuildError
from nnbuild.runtime.environment import cache_folder
from nnbuild.runtime.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nnbuild.store import Store

_MIN_FREE_BYTES = 500 * 2**20
_COLOURS = {"ok": "green", "note": "yellow", "fails": "red"}
_USE_LOCK = "install with -c constraints.txt"


class Finding(NamedTuple):
    """Result of one check.

    Attributes:
        what: Subject of the check.
        state: `ok`, `note` (a run works without it) or `fails` (a run would fail).
        detail: One sentence.
    """

    what: str
    state: str
    detail: str


@app.command(rich_help_panel=MAINTAIN, epilog="Example: nnbuild doctor --store ./nnbuild-store")
def doctor(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder with the MNIST files.", show_default="$NNBUILD_DATA_DIR"
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove leftovers of failed writes and restore lost rows."),
    ] = False,
    discard: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Unfinished run or scoring job to remove while repairing. May be repeated.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: list the repairs without making them.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the installation, the data and the store; repair a store."""
    if repair or discard:
        _repair(store, discard or [], dry_run=dry_run, as_json=as_json)
        return
    if dry_run:
        raise typer.BadParameter("it applies to --repair only", param_hint="--dry-run")
    findings = [
        _check_python(),
        *_check_packages(),
        *_check_store(store),
        _check_memory(),
        *_check_data(data_dir),
        _check_prefect(),
    ]
    is_healthy = all(each.state != "fails" for each in findings)
    if as_json:
        print_json({"ok": is_healthy, "findings": [each._asdict() for each in findings]})
    else:
        _print_findings(findings)
    if not is_healthy:
        raise typer.Exit(1)


@app.command(rich_help_panel=MAINTAIN, epilog="Example: nnbuild version")
def version() -> None:
    """Print the version."""
    from nnbuild.runtime.environment import code_version

    typer.echo(code_version())


def _repair(root: str | None, discard: list[str], *, dry_run: bool, as_json: bool) -> None:
    from datetime import UTC, datetime

    from nnbuild.pipeline.repair import apply, plan
    from nnbuild.store import Store

    store = Store.open(root)
    repairs = plan(store, datetime.now(UTC), discard=discard)
    findings = [each.finding._asdict() for each in repairs]
    if not as_json:  # before anything is changed
        print_table(findings, ("action", "path", "detail"), f"{store.root} needs no repair")
        if any(each["detail"].endswith("or discarded") for each in findings):
            print_line("To discard a run or a job, give its ID: --discard ID")
    if not dry_run:
        apply(repairs)
    if as_json:
        print_json({"store": str(store.root), "dry_run": dry_run, "findings": findings})


def _print_findings(findings: list[Finding]) -> None:
    console = PlainConsole() if sys.stdout.isatty() else PlainConsole(width=1000)
    for each in findings:
        text = sanitize(f"  {each.what}: {each.detail}")
        console.print(Text.assemble((f"{each.state:5}", _COLOURS[each.state]), text))


def _check_python() -> Finding:
    is_supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    detail = f"{platform.python_version()}, 3.11 to 3.13 are supported"
    return Finding("Python", "ok" if is_supported else "fails", detail)


def _check_packages() -> Iterator[Finding]:
    """Compare the requirements of nnbuild with the installed versions; upper bounds matter."""
    from importlib.metadata import PackageNotFoundError, distribution
    from importlib.metadata import version as installed_version

    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(each) for each in distribution("nnbuild").requires or []]
    except PackageNotFoundError:
        detail = "is not installed and runs from a folder; pip install -c constraints.txt ."
        yield Finding("nnbuild", "note", detail)
        return
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        expected = f"expected {requirement.specifier}; {_USE_LOCK}"
        try:
            version = installed_version(requirement.name)
        except PackageNotFoundError:
            yield Finding(requirement.name, "fails", f"is missing, {expected}")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "ok", version)
        else:
            yield Finding(requirement.name, "fails", f"{version}, {expected}")


def _check_store(root: str | None) -> Iterator[Finding]:
    from nnbuild.store import Store

    try:
        store = Store(root)
    except NnbuildError as error:
        yield Finding("store", "fails", str(error))
        return
    try:
        free = _free_bytes_for_url(store) if store.is_remote else _free_bytes(store.root)
    except (OSError, NnbuildError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        detail = f"{store.root} is not writable ({reason}); give another --store"
        yield Finding("store", "fails", detail)
        return
    count = f"{len(store.run_ids())} runs" if store.exists() else "no store there yet"
    state = "ok" if free > _MIN_FREE_BYTES else "fails"
    detail = f"{store.root} is writable, {free / 2**30:.1f} GiB free, {count}"
    if state == "fails":
        detail += f"; free some space: at least {_MIN_FREE_BYTES / 2**30:.1f} GiB"
    yield Finding("store", state, detail)
    unfinished = [each.run_id for each in store.unfinished_runs() if not each.held]
    if unfinished:
        detail = f"{', '.join(unfinished)}; resume with nnbuild run --resume RUN_ID"
        yield Finding("unfinished", "note", detail)


def _free_bytes(folder: Path) -> int:
    """Return the free bytes where a folder is or would be, after writing there."""
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    with tempfile.TemporaryFile(dir=nearest):
        return shutil.disk_usage(nearest).free


def _free_bytes_for_url(store: Store) -> int:
    """Return the free bytes for runs in progress, after writing to the remote store."""
    from nnbuild.store.filesystem import write_bytes

    probe = store.root / f"probe-{os.getpid()}"
    write_bytes(probe, b"")
    probe.unlink()
    return _free_bytes(store.local_root)


def _check_memory() -> Finding:
    from nnbuild.runtime.cgroups import total_memory
    from nnbuild.runtime.environment import processors

    gib = total_memory() / 2**30
    detail = f"{processors()} processors, {gib:.1f} GiB of memory"
    return Finding("machine", "ok" if gib > 2 else "note", detail)


def _check_data(data_dir: Path | None) -> Iterator[Finding]:
    from nnbuild.config.schema import default_data_dir
    from nnbuild.data import sources

    folder = data_dir or default_data_dir()
    try:
        data = sources.load("mnist", data_dir=folder, cache=cache_folder(), mirrors={"mnist": []})
    except NnbuildError as error:
        state = "note" if folder is None else "fails"
        detail = f"{error}; a run would try the mirrors, or use --fallback digits"
        yield Finding("mnist", state, detail)
    else:
        detail = f"{len(data.train):,} + {len(data.test):,} images from {data.source}"
        yield Finding("mnist", "ok", detail)


def _check_prefect() -> Finding:
    """Start the embedded server, or ask the configured one, exactly as a run does."""
    from flows.embedded_server import EmbeddedServer

    try:
        with EmbeddedServer() as server:
            pass
    except NnbuildError as error:
        return Finding("Prefect", "fails", str(error))
    kind = "the embedded server starts" if server.embedded else "the configured server answers"
    return Finding("Prefect", "ok", f"{kind} ({server.url})")
