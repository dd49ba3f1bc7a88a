"""`nnbuild doctor`: what is installed, reachable and writable, and what would make a run fail."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import NamedTuple

import typer
from packaging.requirements import Requirement
from rich.text import Text

from flows.embedded_server import EmbeddedServer
from flows.printing import PlainConsole, print_json
from nnbuild.config.schema import default_data_dir
from nnbuild.data import sources
from nnbuild.errors import NnbuildError
from nnbuild.runtime.cgroups import total_memory
from nnbuild.runtime.environment import processors
from nnbuild.runtime.text import sanitize
from nnbuild.store import Store
from nnbuild.store.filesystem import write_bytes

_ENOUGH_BYTES = 500 * 2**20


class Finding(NamedTuple):
    """One thing that was looked at: `ok`, `note` (a run works without it) or `fails` (a run would fail)."""

    what: str
    state: str
    detail: str


def doctor(root: str | None, data_dir: Path | None, *, as_json: bool) -> None:
    """Look at everything that a run needs.

    Raises:
        typer.Exit: with code 1, if something would make a run fail.
    """
    given = data_dir or default_data_dir()
    findings = [_python(), *_packages(), *_store(root), _memory(), *_data(given), _prefect()]
    if as_json:
        print_json({"ok": _is_well(findings), "findings": [each._asdict() for each in findings]})
    else:
        console = PlainConsole() if sys.stdout.isatty() else PlainConsole(width=1000)
        for each in findings:
            colour = {"ok": "green", "note": "yellow", "fails": "red"}[each.state]
            found = sanitize(f"  {each.what}: {each.detail}")
            console.print(Text.assemble((f"{each.state:5}", colour), found))
    if not _is_well(findings):
        raise typer.Exit(1)


def _is_well(findings: list[Finding]) -> bool:
    return all(each.state != "fails" for each in findings)


def _python() -> Finding:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding(
        "Python",
        "ok" if fits else "fails",
        f"{platform.python_version()}, 3.11 to 3.13 are supported",
    )


def _packages() -> Iterator[Finding]:
    """Each of nnbuild's requirements against what is installed: the upper bounds matter."""
    try:
        wanted = [Requirement(each) for each in distribution("nnbuild").requires or []]
    except PackageNotFoundError:
        yield Finding(
            "nnbuild",
            "note",
            "is not installed, it runs from a folder; install it by pip install -c constraints.txt .",
        )
        return
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(
                requirement.name,
                "fails",
                f"is missing, expected {requirement.specifier}; install with constraints.txt",
            )
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        mend = "" if fits else f", expected {requirement.specifier}; install with constraints.txt"
        yield Finding(requirement.name, "ok" if fits else "fails", f"{found}{mend}")


def _store(root: str | None) -> Iterator[Finding]:
    try:
        store = Store(root)
    except NnbuildError as error:
        yield Finding("store", "fails", str(error))
        return
    try:
        room = _room_behind_a_url(store) if store.is_remote else _room(store.root)
    except (OSError, NnbuildError) as error:
        yield Finding(
            "store",
            "fails",
            f"{store.root} cannot be written ({_reason(error)}); give another --store",
        )
        return
    runs, waiting = (
        len(store.run_ids()),
        [each.run_id for each in store.unfinished_runs() if not each.held],
    )
    enough = "ok" if room > _ENOUGH_BYTES else "fails"
    held = f"{runs} runs" if store.exists() else "no store there yet"
    yield Finding("store", enough, f"{store.root} is writable, {room / 2**30:.1f} GiB free, {held}")
    if waiting:
        yield Finding(
            "unfinished", "note", f"{', '.join(waiting)}; go on by nnbuild run --resume RUN_ID"
        )


def _room(folder: Path) -> int:
    """The bytes that are free where a folder is, or would be; it must be possible to write there."""
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    with tempfile.TemporaryFile(dir=nearest):
        return shutil.disk_usage(nearest).free


def _room_behind_a_url(store: Store) -> int:
    """The bytes that are free for runs in progress; it must be possible to write to the service."""
    probe = store.root / f"probe-{os.getpid()}"
    write_bytes(probe, b"")
    probe.unlink()
    return _room(store.local_root)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _memory() -> Finding:
    memory = total_memory() / 2**30
    return Finding(
        "machine",
        "ok" if memory > 2 else "note",  # noqa: PLR2004
        f"{processors()} processors, {memory:.1f} GiB of memory",
    )


def _data(data_dir: Path | None) -> Iterator[Finding]:
    try:
        found = sources.load(
            "mnist", data_dir=data_dir, cache=sources.default_cache(), mirrors={"mnist": []}
        )
        yield Finding(
            "mnist", "ok", f"{len(found.train):,} + {len(found.test):,} images from {found.source}"
        )
    except NnbuildError as error:
        state = "note" if data_dir is None else "fails"
        yield Finding(
            "mnist", state, f"{error}; a run would try the mirrors, or take --fallback digits"
        )


def _prefect() -> Finding:
    """Start the embedded server, or ask the configured one, exactly as a run does."""
    try:
        with EmbeddedServer() as server:
            pass
    except NnbuildError as error:
        return Finding("Prefect", "fails", str(error))
    kind = "the embedded server starts" if server.embedded else "the configured server answers"
    return Finding("Prefect", "ok", f"{kind} ({server.url})")
