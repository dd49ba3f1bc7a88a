"""What becomes of a schedule of every minute on a real server, with Prefect's own pace: a table of every run that was due.

It is left alone; the process of a run is killed; the worker is, with its run; the worker is stopped for two minutes;
everything is killed, and stays off for five. It mostly waits: half an hour. The exit code is 1 if a rule was broken.

    python benchmarks/schedule.py [--minutes 10] [--off 5]
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))
from real_server import Server, real_server, until

from flows.cli.serve import deployment_name
from nnbuild.errors import StoreError
from nnbuild.store import Store
from nnbuild.store.manifests import Manifest

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
MINUTE = timedelta(minutes=1)
A_WHILE = 600  # seconds, for what is waited for
SOME_MINUTES = 2  # that the worker is stopped, while the server goes on


class Watched:
    """A store, the server of the moment, and what was done to them."""

    def __init__(
        self, folder: Path, epochs: int, *, dataset: str = "digits", model: str = "lab"
    ) -> None:
        self.store, self.home, self.epochs = Store(folder / "store"), folder / "prefect", epochs
        self.home.mkdir()
        self.settings = {
            "dataset.name": f'"{dataset}"',
            "model.name": f'"{model}"',
            "training.epochs": epochs,
        }
        self.name = deployment_name(self.store)
        self.done: list[tuple[datetime, str]] = []

    def say(self, text: str) -> None:
        """Something was done; it is told at once, and again beside the table."""
        self.done.append((datetime.now(UTC), text))
        print(f"{clock(self.done[-1][0])} {text}", file=sys.stderr, flush=True)

    @contextmanager
    def serving(self, server: Server) -> Iterator[psutil.Process]:
        """`nnbuild serve`, every minute."""
        given = [
            part for name, value in self.settings.items() for part in ("--set", f"{name}={value}")
        ]
        with server.serving("--cron", "* * * * *", "--store", self.store.root, *given) as process:
            yield psutil.Process(process.pid)

    def fitting(self) -> str:
        """The run that is in its fit, as soon as there is one: it makes epochs."""
        before: dict[str, int] = {}

        def found() -> str | None:
            for each in self.store.unfinished_runs():
                epochs = epochs_of(self.store, each.run_id) if each.held else 0
                if epochs > before.setdefault(each.run_id, max(epochs, 1)):
                    return each.run_id
            return None

        return str(until(found, A_WHILE, "run in its fit"))

    def gone_on_with(self, run_id: str) -> None:
        """Wait until a run is committed."""
        until(lambda: run_id in self.store.run_ids(), A_WHILE, f"end of {run_id}")

    def due(self, server: Server, end: datetime) -> list[dict[str, Any]]:
        """The flow runs that were due before some time."""
        return [
            each for each in server.flow_runs(self.name) if when(each, "expected_start_time") < end
        ]

    def settled(self, server: Server) -> datetime:
        """Wait until everything that is due by now has come to its end; now."""
        end = datetime.now(UTC)
        final = lambda: all(each["state"]["type"] in FINAL for each in self.due(server, end))  # noqa: E731
        until(final, A_WHILE, "end of what was due")
        return end

    def crashed(self, server: Server) -> int:
        """How many runs are known to be."""
        return sum(each["state"]["type"] == "CRASHED" for each in server.flow_runs(self.name))

    def kill(self, processes: Callable[[], list[psutil.Process]], what: str) -> str:
        """Kill the processes that there are in the middle of a fit; the run."""
        run_id = self.fitting()
        for each in processes():
            each.kill()
        self.say(
            f"SIGKILL to {what}, in epoch {epochs_of(self.store, run_id)} of {self.epochs} of run {run_id[-6:]}"
        )
        return run_id

    def noticed(self, server: Server, crashed: int) -> None:
        """Wait until the server knows that another run has crashed."""
        killed = self.done[-1][0]
        until(lambda: self.crashed(server) > crashed, A_WHILE, "run that is known to have crashed")
        self.say(f"the server knows, {(datetime.now(UTC) - killed).total_seconds():.0f} s later")


def epochs_of(store: Store, run_id: str) -> int:
    """How many epochs of a run in staging are in its history."""
    try:
        history = store.staged_history(run_id)
    except StoreError:  # it is just being committed
        return 0
    return 0 if history is None else len(set(history["epoch"].to_pylist()))


def run_process(serve: psutil.Process) -> list[psutil.Process]:
    """The process of the run that a worker has begun."""
    return [each for each in serve.children(recursive=True) if "prefect.engine" in each.cmdline()]


def watch(watched: Watched, minutes: float, off: float) -> list[dict[str, Any]]:
    """Everything that is done to the schedule.

    Returns:
        The flow runs that were due until the end.
    """
    with real_server(watched.home, {}) as server:
        with watched.serving(server) as serve:
            watched.say(f"left alone for {minutes:g} minutes")
            time.sleep(minutes * 60)
            run_id = watched.kill(lambda: run_process(serve), "the process of a run")
            watched.noticed(server, 0)
            watched.gone_on_with(run_id)
            run_id = watched.kill(lambda: [serve, *run_process(serve)], "the worker and its run")
        with watched.serving(server):
            watched.noticed(server, 1)
            watched.gone_on_with(run_id)
            run_id = watched.fitting()
            watched.say(
                f"SIGTERM to the worker, in epoch {epochs_of(watched.store, run_id)} of run {run_id[-6:]}"
            )
        time.sleep(SOME_MINUTES * 60)
        with watched.serving(server) as serve:
            watched.say(f"the worker is started again, after {SOME_MINUTES} minutes")
            watched.gone_on_with(run_id)
            watched.settled(server)
            servers = psutil.Process(server.process.pid)
            servers = [servers, *servers.children(recursive=True)]
            run_id = watched.kill(
                lambda: [*servers, serve, *run_process(serve)], "the server, the worker and its run"
            )
    time.sleep(off * 60)
    with real_server(watched.home, {}) as server:
        with watched.serving(server):
            watched.say(f"all of it is started again, after {off:g} minutes")
            watched.gone_on_with(run_id)
            end = watched.settled(server)
        return watched.due(server, end)


def when(run: dict[str, Any], which: str) -> datetime | None:
    return datetime.fromisoformat(run[which]) if run[which] else None


def clock(time_of_day: datetime | None) -> str:
    return f"{time_of_day:%H:%M:%S}" if time_of_day else ""


def made(watched: Watched, run: dict[str, Any]) -> Manifest | None:
    """The manifest of what a flow run has made; None if it made nothing."""
    start, end = when(run, "start_time"), when(run, "end_time")
    for run_id in watched.store.run_ids() if start and end else ():
        manifest = watched.store.manifest(run_id)
        if start <= datetime.fromisoformat(str(manifest.row.finished_at)) <= end:
            return manifest
    return None


def told(watched: Watched, run: dict[str, Any]) -> str:
    """What a flow run made: its run, whether that was begun by another one, or why there is none."""
    manifest = made(watched, run)
    if manifest is None:
        return str(run["state"]["message"] or "")[:100]
    began = datetime.fromisoformat(str(manifest.row.started_at))
    return f"run {manifest.run_id[-6:]}" + (
        f", begun at {clock(began)}" if began < when(run, "start_time") else ""
    )


def verdict(watched: Watched, runs: list[dict[str, Any]]) -> dict[str, int]:
    """What should be nothing."""
    due = {when(each, "expected_start_time") for each in runs}
    minutes = (max(due) - min(due)) // MINUTE + 1
    begun = sorted(
        (each for each in runs if each["start_time"] and each["end_time"]),
        key=lambda each: each["start_time"],
    )
    completed = [each for each in runs if each["state"]["name"] == "Completed"]
    return {
        "due and lost": minutes - len(due),
        "overlapping": sum(
            when(one, "end_time") > when(other, "start_time")
            for one, other in itertools.pairwise(begun)
        ),
        "without an end": sum(each["state"]["type"] not in FINAL for each in runs),
        "completed without a run": sum(made(watched, each) is None for each in completed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--off", type=float, default=5)
    parser.add_argument("--epochs", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        watched = Watched(Path(folder), options.epochs)
        runs = watch(watched, options.minutes, options.off)
        for at, text in watched.done:
            print(f"{clock(at)} {text}")
        print("\n| due | started | ended | state | what |\n| --- | --- | --- | --- | --- |")
        for each in runs:
            times = (when(each, name) for name in ("expected_start_time", "start_time", "end_time"))
            print(
                f"| {' | '.join(map(clock, times))} | {each['state']['name']} | {told(watched, each)} |"
            )
        found = verdict(watched, runs)
        print(
            f"\n{len(runs)} due; " + ", ".join(f"{number} {name}" for name, number in found.items())
        )
    sys.exit(any(found.values()))


if __name__ == "__main__":
    main()
