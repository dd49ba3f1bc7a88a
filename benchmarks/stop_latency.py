"""Measure how long a fit continues after SIGTERM, a cancel in Prefect's UI, or a stop of `serve`.

    python benchmarks/stop_latency.py [--dataset mnist] [--model convnet]

Each way to stop is applied to a scheduled run on a real server. The next flow run has to resume the
same run, or to begin another one after a cancel. The program prints the seconds until the run is
released, which is after its checkpoint is written, and until its flow run is in a final state. The
exit code is 1 if the first takes more than five seconds, if a flow run has no final state, or if a
run was not resumed, or resumed after the cancel.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from schedule import FINAL, TIMEOUT, ScheduleUnderTest, count_epochs, run_process

sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))
from real_server import Server, real_server, until

MAX_SECONDS = 5.0


def stop(
    schedule: ScheduleUnderTest, server: Server, what: str, how: Callable[[str], None]
) -> tuple[str, float]:
    """Stop the run that is in its fit, and print how long that took.

    Args:
        schedule: Schedule of the run.
        server: Prefect server of the schedule.
        what: Description of the way to stop, for the printed row.
        how: Function that stops the run; its argument is the ID of the flow run.

    Returns:
        ID of the run, and the seconds until it was released.
    """
    run_id = schedule.wait_for_fit()
    running = next(
        each for each in server.flow_runs(schedule.name) if each["state"]["type"] == "RUNNING"
    )
    epochs = count_epochs(schedule.store, run_id)
    start_time = time.monotonic()
    how(running["id"])
    until(
        lambda: not any(each.held for each in schedule.store.unfinished_runs()),
        TIMEOUT,
        "end of the fit",
    )
    seconds = time.monotonic() - start_time

    def state() -> dict[str, Any]:
        runs = server.flow_runs(schedule.name)
        return next(each["state"] for each in runs if each["id"] == running["id"])

    until(lambda: state()["type"] in FINAL, TIMEOUT, "final state")
    final_seconds = time.monotonic() - start_time
    print(
        f"| {what} | {epochs} | {seconds:.1f} | {final_seconds:.1f} | {state()['name']} |",
        flush=True,
    )
    return run_id, seconds


def main() -> None:
    """Stop three runs, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="mnist", help="dataset to train on")
    parser.add_argument("--model", default="convnet", help="network to train")
    options = parser.parse_args()
    if options.dataset == "mnist" and not os.environ.get("NNBUILD_DATA_DIR"):
        sys.exit("no folder with MNIST: set NNBUILD_DATA_DIR to a folder with its IDX files")
    with tempfile.TemporaryDirectory() as folder:
        schedule = ScheduleUnderTest(
            Path(folder), 1000, dataset=options.dataset, model=options.model
        )
        with real_server(schedule.home, {}) as server:

            def cancel(flow_run_id: str) -> None:
                server.ask(
                    f"/flow_runs/{flow_run_id}/set_state",
                    state={"type": "CANCELLING", "name": "Cancelling"},
                )

            def terminate(processes: Callable[[], list[psutil.Process]]) -> Callable[[str], None]:
                return lambda _: [each.terminate() for each in processes()] and None

            columns = "stopped by", "epochs", "seconds to the end of the fit", "to the final state"
            print(f"| {' | '.join(columns)} | state |\n| --- | --- | --- | --- | --- |")
            stop_run = partial(stop, schedule, server)
            with schedule.serving(server) as serve:
                results = [
                    stop_run("SIGTERM to the run", terminate(lambda: run_process(serve))),
                    stop_run("cancel in the UI", cancel),
                    stop_run("SIGTERM to the worker", terminate(lambda: [serve])),
                ]
            states = [
                each["state"]["type"]
                for each in server.flow_runs(schedule.name)
                if each["start_time"]
            ]
    stopped, cancelled, last = (run_id for run_id, _ in results)
    final = sum(each in FINAL for each in states)
    print(f"\n{final} of {len(states)} started flow runs are in a final state")
    sys.exit(
        not stopped == cancelled != last
        or any(seconds > MAX_SECONDS for _, seconds in results)
        or not FINAL.issuperset(states)
    )


if __name__ == "__main__":
    main()
