"""Measure how long a fit runs on after SIGTERM, a cancel in Prefect's UI, or a stop of `serve`.

Each is done to a scheduled run on a real server; the next one has to resume the same run, and begin
another one after a cancel. Printed are the seconds until the run is let go of, its checkpoint
written, and those until its row is in a final state. The exit code is 1 if one is above five, or if
the next run was not the one that it has to be.

    python benchmarks/stop_latency.py [--dataset mnist] [--model convnet]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from schedule import A_WHILE, FINAL, Watched, epochs_of, run_process

sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))
from real_server import Server, real_server, until

MOST = 5.0


def stop(
    watched: Watched, server: Server, what: str, how: Callable[[str], None]
) -> tuple[str, float]:
    """Stop the run that is in its fit.

    Returns:
        Its id, and the seconds until it was let go of.
    """
    run_id = watched.fitting()
    running = next(
        each for each in server.flow_runs(watched.name) if each["state"]["type"] == "RUNNING"
    )
    epochs = epochs_of(watched.store, run_id)
    began = time.monotonic()
    how(running["id"])
    until(
        lambda: not any(each.held for each in watched.store.unfinished_runs()),
        A_WHILE,
        "end of the fit",
    )
    seconds = time.monotonic() - began
    state = lambda: next(  # noqa: E731
        each["state"] for each in server.flow_runs(watched.name) if each["id"] == running["id"]
    )
    until(lambda: state()["type"] in FINAL, A_WHILE, "final state")
    print(
        f"| {what} | {epochs} | {seconds:.1f} | {time.monotonic() - began:.1f} | {state()['name']} |",
        flush=True,
    )
    return run_id, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--model", default="convnet")
    options = parser.parse_args()
    if options.dataset == "mnist" and not os.environ.get("NNBUILD_DATA_DIR"):
        sys.exit("set NNBUILD_DATA_DIR to the folder with MNIST's IDX files")
    with tempfile.TemporaryDirectory() as folder:
        watched = Watched(Path(folder), 1000, dataset=options.dataset, model=options.model)
        with real_server(watched.home, {}) as server:

            def cancel(flow_run_id: str) -> None:
                server.ask(
                    f"/flow_runs/{flow_run_id}/set_state",
                    state={"type": "CANCELLING", "name": "Cancelling"},
                )

            def terminate(processes: Callable[[], list[psutil.Process]]) -> Callable[[str], None]:
                return lambda _: [each.terminate() for each in processes()] and None

            print(
                "| what | epochs | seconds to the end of the fit | to the final state | which |\n| --- | --- | --- | --- | --- |"
            )
            with watched.serving(server) as serve:
                found = [
                    stop(
                        watched, server, "SIGTERM to the run", terminate(lambda: run_process(serve))
                    ),
                    stop(watched, server, "cancel in the UI", cancel),
                    stop(watched, server, "SIGTERM to the worker", terminate(lambda: [serve])),
                ]
            left = [
                each["state"]["type"]
                for each in server.flow_runs(watched.name)
                if each["start_time"]
            ]
    stopped, cancelled, last = (run_id for run_id, _ in found)
    finals = sum(each in FINAL for each in left)
    print(f"\n2 runs wait; of {len(left)} rows that began, {finals} are in a final state")
    sys.exit(
        not stopped == cancelled != last
        or any(seconds > MOST for _, seconds in found)
        or not FINAL.issuperset(left)
    )


if __name__ == "__main__":
    main()
