"""Disturb a schedule of one run per minute on a real server, and print what each due run did.

    python benchmarks/schedule.py [--minutes 10] [--off 5]

The server has Prefect's default timing. The schedule is left undisturbed for a while. Then the
process of a run is killed, then the worker with its run; then the worker is stopped for two
minutes; at last everything is killed and stays off for five minutes. The program takes half an hour
and mostly waits. The exit code is 1 if a due run was lost, overlapped another one, did not end, or
completed without a committed run.
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
TIMEOUT = 600  # seconds, of every wait
MINUTES_WITHOUT_WORKER = 2  # while the server keeps running


class ScheduleUnderTest:
    """A store, the settings of its schedule, and the log of what was done to it.

    Attributes:
        store: Store of the runs.
        home: Folder of the Prefect server.
        epochs: Epochs per run.
        settings: Values for `--set` of `nnbuild serve`, by the name of the setting.
        name: Name of the deployment.
        log: Times and descriptions of what was done.
    """

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
        self.log: list[tuple[datetime, str]] = []

    def record(self, text: str) -> None:
        """Log what was done, and print it to stderr."""
        self.log.append((datetime.now(UTC), text))
        print(f"{clock(self.log[-1][0])} {text}", file=sys.stderr, flush=True)

    @contextmanager
    def serving(self, server: Server) -> Iterator[psutil.Process]:
        """Run `nnbuild serve` with a schedule of one run per minute."""
        values = [
            part for name, value in self.settings.items() for part in ("--set", f"{name}={value}")
        ]
        with server.serving(
            "--cron", "* * * * *", "--unchanged", "run", "--store", self.store.root, *values
        ) as process:
            yield psutil.Process(process.pid)

    def wait_for_fit(self) -> str:
        """Wait until a run completes an epoch of its fit, and return its ID."""
        before: dict[str, int] = {}

        def fitting_run() -> str | None:
            for each in self.store.unfinished_runs():
                epochs = count_epochs(self.store, each.run_id) if each.held else 0
                if epochs > before.setdefault(each.run_id, max(epochs, 1)):
                    return each.run_id
            return None

        return str(until(fitting_run, TIMEOUT, "run in its fit"))

    def wait_for_commit(self, run_id: str) -> None:
        """Wait until a run is committed."""
        until(lambda: run_id in self.store.run_ids(), TIMEOUT, f"commit of {run_id}")

    def due(self, server: Server, end: datetime) -> list[dict[str, Any]]:
        """Return the flow runs that were due before a time."""
        return [
            each for each in server.flow_runs(self.name) if when(each, "expected_start_time") < end
        ]

    def wait_for_due_runs(self, server: Server) -> datetime:
        """Wait until all flow runs that are due now have ended; return the time of the call."""
        end = datetime.now(UTC)

        def ended() -> bool:
            return all(each["state"]["type"] in FINAL for each in self.due(server, end))

        until(ended, TIMEOUT, "end of the due runs")
        return end

    def count_crashed(self, server: Server) -> int:
        """Count the flow runs that the server has marked as crashed."""
        return sum(each["state"]["type"] == "CRASHED" for each in server.flow_runs(self.name))

    def kill(self, processes: Callable[[], list[psutil.Process]], what: str) -> str:
        """Kill processes in the middle of a fit, and return the ID of the run.

        Args:
            processes: Function that returns the processes to kill.
            what: Description of the processes, for the log.
        """
        run_id = self.wait_for_fit()
        for each in processes():
            each.kill()
        epoch = count_epochs(self.store, run_id)
        self.record(f"SIGKILL to {what}, in epoch {epoch} of {self.epochs} of run {run_id[-6:]}")
        return run_id

    def wait_for_crash(self, server: Server, crashed: int) -> None:
        """Wait until the server has marked more than `crashed` flow runs as crashed."""
        killed = self.log[-1][0]
        until(lambda: self.count_crashed(server) > crashed, TIMEOUT, "run marked as crashed")
        seconds = (datetime.now(UTC) - killed).total_seconds()
        self.record(f"crash detected by the server, {seconds:.0f} s later")


def count_epochs(store: Store, run_id: str) -> int:
    """Count the epochs in the history of a run in staging."""
    try:
        history = store.staged_history(run_id)
    except StoreError:  # the run is being committed
        return 0
    return 0 if history is None else len(set(history["epoch"].to_pylist()))


def run_process(serve: psutil.Process) -> list[psutil.Process]:
    """Return the process of the run that a worker has started, if any."""
    return [each for each in serve.children(recursive=True) if "prefect.engine" in each.cmdline()]


def disturb(schedule: ScheduleUnderTest, minutes: float, off: float) -> list[dict[str, Any]]:
    """Disturb the schedule in every way, and return all flow runs that were due.

    Args:
        schedule: Schedule to disturb.
        minutes: Minutes without a disturbance at the start.
        off: Minutes that everything stays off at the end.
    """
    with real_server(schedule.home, {}) as server:
        with schedule.serving(server) as serve:
            schedule.record(f"left undisturbed for {minutes:g} minutes")
            time.sleep(minutes * 60)
            run_id = schedule.kill(lambda: run_process(serve), "the process of a run")
            schedule.wait_for_crash(server, 0)
            schedule.wait_for_commit(run_id)
            run_id = schedule.kill(lambda: [serve, *run_process(serve)], "the worker and its run")
        with schedule.serving(server):
            schedule.wait_for_crash(server, 1)
            schedule.wait_for_commit(run_id)
            run_id = schedule.wait_for_fit()
            epoch = count_epochs(schedule.store, run_id)
            schedule.record(f"SIGTERM to the worker, in epoch {epoch} of run {run_id[-6:]}")
        time.sleep(MINUTES_WITHOUT_WORKER * 60)
        with schedule.serving(server) as serve:
            schedule.record(f"worker restarted after {MINUTES_WITHOUT_WORKER} minutes")
            schedule.wait_for_commit(run_id)
            schedule.wait_for_due_runs(server)
            main_process = psutil.Process(server.process.pid)
            servers = [main_process, *main_process.children(recursive=True)]
            run_id = schedule.kill(
                lambda: [*servers, serve, *run_process(serve)], "the server, the worker and its run"
            )
    time.sleep(off * 60)
    with real_server(schedule.home, {}) as server:
        with schedule.serving(server):
            schedule.record(f"everything restarted after {off:g} minutes")
            schedule.wait_for_commit(run_id)
            end = schedule.wait_for_due_runs(server)
        return schedule.due(server, end)


def when(run: dict[str, Any], which: str) -> datetime | None:
    """Return a time of a flow run, or None if it has none."""
    return datetime.fromisoformat(run[which]) if run[which] else None


def clock(time_of_day: datetime | None) -> str:
    """Format a time as hours, minutes and seconds."""
    return f"{time_of_day:%H:%M:%S}" if time_of_day else ""


def committed_by(store: Store, run: dict[str, Any]) -> Manifest | None:
    """Return the manifest of the run that a flow run has committed, or None if there is none."""
    start, end = when(run, "start_time"), when(run, "end_time")
    for run_id in store.run_ids() if start and end else ():
        manifest = store.manifest(run_id)
        if start <= datetime.fromisoformat(str(manifest.row.finished_at)) <= end:
            return manifest
    return None


def describe(store: Store, run: dict[str, Any]) -> str:
    """Describe the run that a flow run has committed, or return why there is none."""
    manifest = committed_by(store, run)
    if manifest is None:
        return str(run["state"]["message"] or "")[:100]
    started = datetime.fromisoformat(str(manifest.row.started_at))
    resumed = started < when(run, "start_time")
    return f"run {manifest.run_id[-6:]}" + (f", started at {clock(started)}" if resumed else "")


def count_violations(store: Store, runs: list[dict[str, Any]]) -> dict[str, int]:
    """Count the violations of each rule of the schedule; all counts should be 0."""
    due = {when(each, "expected_start_time") for each in runs}
    minutes = (max(due) - min(due)) // MINUTE + 1
    started = sorted(
        (each for each in runs if each["start_time"] and each["end_time"]),
        key=lambda each: each["start_time"],
    )
    completed = [each for each in runs if each["state"]["name"] == "Completed"]
    return {
        "due and lost": minutes - len(due),
        "overlapping": sum(
            when(one, "end_time") > when(other, "start_time")
            for one, other in itertools.pairwise(started)
        ),
        "without an end": sum(each["state"]["type"] not in FINAL for each in runs),
        "completed without a run": sum(committed_by(store, each) is None for each in completed),
    }


def main() -> None:
    """Print the log, the table of due runs and the violations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="undisturbed minutes at first")
    parser.add_argument(
        "--off", type=float, default=5, help="minutes that everything stays off at the end"
    )
    parser.add_argument("--epochs", type=int, default=300, help="epochs per run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        schedule = ScheduleUnderTest(Path(folder), options.epochs)
        runs = disturb(schedule, options.minutes, options.off)
        for at, text in schedule.log:
            print(f"{clock(at)} {text}")
        print("\n| due | started | ended | state | what |\n| --- | --- | --- | --- | --- |")
        for each in runs:
            times = (when(each, name) for name in ("expected_start_time", "start_time", "end_time"))
            cells = [*map(clock, times), each["state"]["name"], describe(schedule.store, each)]
            print(f"| {' | '.join(cells)} |")
        violations = count_violations(schedule.store, runs)
        counts = ", ".join(f"{number} {name}" for name, number in violations.items())
        print(f"\n{len(runs)} due; {counts}")
    sys.exit(any(violations.values()))


if __name__ == "__main__":
    main()
