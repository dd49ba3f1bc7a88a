"""`nnbuild sweep`: the trials of a sweep in this process or on a cluster, and the best by validation to the gate."""

import time
from pathlib import Path
from typing import Any

import typer

from flows.commands.run import configured_from, start
from flows.commands.score import require_runner
from flows.display import display_for
from flows.printing import PlainConsole, jsonable, print_json, print_line, print_table
from nnbuild.errors import ConfigError
from nnbuild.sweep import (
    Sweep,
    SweepConfig,
    SweepResult,
    open_sweep,
    require_possible,
    sweep_config,
)
from nnbuild.sweep.dask import workers_of
from nnbuild.sweep.space import options_of, split_file

Settings = dict[str, Any]


def sweep(
    base: Settings,
    options: Settings,
    path: Path | None,
    overrides: list[str],
    *,
    store: str | None,
    sweep_id: str | None,
    runner: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Make the trials that are not there yet, and tell all of them, the best first.

    Raises:
        NnbuildError: bad input, or a signal; the same command goes on.
        typer.Exit: with 1, if no trial finished.
    """
    began = time.perf_counter()
    config = configured(base, options, path, overrides, sweep_id=sweep_id)
    require_runner(runner, address)
    opened = open_sweep(config, store, sweep_id)
    require_possible(opened)
    workers = workers_of(opened, address) if address is not None else 0
    console = PlainConsole(stderr=True)
    start(console)
    swept = _swept(opened, workers, address, console)
    if as_json:
        print_json(_object(swept, opened, time.perf_counter() - began))
    else:
        _show(swept)
    if swept.best is None:
        raise typer.Exit(1)


def configured(
    base: Settings,
    options: Settings,
    path: Path | None,
    overrides: list[str],
    *,
    sweep_id: str | None,
) -> SweepConfig | None:
    """The config of a sweep: the file, and the options over it; None if there is but the id of one to go on with.

    Raises:
        ConfigError: something that was given cannot be used.
    """
    run, told = split_file(path)
    over = {name: value for name, value in options.items() if value not in (None, [])}
    for name in ("grid", "search"):
        if name in over:
            over[name] = options_of(over[name], f"--{name}")
    if sweep_id is not None and not {"grid", "search"} & {*told, *over}:
        if told or over or run or overrides or _named(base):
            raise ConfigError(
                f"--id {sweep_id} alone goes on with the sweep's own settings; give no others"
            )
        return None
    return sweep_config(told | over, configured_from(run, base, path, overrides))


def _named(base: Settings) -> bool:
    """Whether an option of the run was given; where the data are does not count, the environment may say that."""
    given = (
        base["dataset"]["name"],
        base["model"]["name"],
        base["training"]["epochs"],
        base["seed"],
    )
    return any(each is not None for each in given)


def _swept(opened: Sweep, workers: int, address: str | None, console: PlainConsole) -> SweepResult:
    from flows.sweep import sweep as flow
    from tasks.progress import shown_on

    if address is not None:
        from prefect_dask import DaskTaskRunner

        flow = flow.with_options(task_runner=DaskTaskRunner(address=address))
    display = display_for(console)
    try:
        with shown_on(display):
            return flow(opened.config, opened.root, opened.sweep_id, workers)
    finally:
        display.close()


def _object(swept: SweepResult, opened: Sweep, seconds: float) -> Settings:
    return {
        "sweep_id": swept.sweep_id,
        "status": "succeeded" if swept.best else "failed",
        "objective": swept.objective,
        "trials": [
            jsonable(trial.model_dump()) | {"values": trial.values, "runs": trial.runs}
            for trial in swept.trials
        ],
        "best": swept.best,
        "promoted": swept.promoted,
        "seconds": round(seconds, 3),
        "store": opened.root,
    }


def _show(swept: SweepResult) -> None:
    from flows.sweep import rows_of

    rows = rows_of(swept)
    columns = list(rows[0]) if rows else []
    print_table(
        rows, [each for each in columns if any(row[each] is not None for row in rows)], "no trials"
    )
    told = (
        f"{swept.best}, {'promoted' if swept.promoted else 'not promoted'}"
        if swept.best
        else "none finished"
    )
    print_line("")
    print_line(f"sweep {swept.sweep_id}; best by {swept.objective}: {told}")
