"""`nnbuild sweep`: train a grid or a search of settings; the best trial goes through the gate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.app import (
    TRAIN,
    AddressOption,
    JsonOption,
    RunnerOption,
    StoreOption,
    app,
    explicit_options,
    require_runner,
)
from flows.cli.console import (
    PlainConsole,
    print_json,
    print_line,
    print_table,
    to_json_row,
)
from flows.cli.run import (
    DataDirOption,
    DatasetOption,
    EpochsOption,
    ModelOption,
    show_flow,
    start_prefect,
)
from flows.cli.settings import Settings, merge_config, nest_options
from nnbuild.errors import ConfigError

if TYPE_CHECKING:
    from nnbuild.sweep import Sweep, SweepConfig, SweepResult


@app.command(
    rich_help_panel=TRAIN,
    epilog="Example: nnbuild sweep --model lab --grid training.learning_rate=0.001,0.01 --seeds 2",
)
def sweep(
    ctx: typer.Context,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B", help="Values of a setting. May be repeated; all are combined."
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=RANGE",
            help="Range of a setting that Optuna samples from: log:1e-4..1e-1, 1..8 or a,b. "
            "May be repeated.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(metavar="N", help="Total number of trials of a search.")
    ] = 20,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Runs per trial, with seeds from --seed on.")
    ] = 1,
    objective: Annotated[
        Literal["val_accuracy", "val_loss"],
        typer.Option(help="Metric by which trials are compared."),
    ] = "val_accuracy",
    no_prune: Annotated[
        bool, typer.Option("--no-prune", help="Never stop an unpromising trial of a search early.")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database of Optuna.", show_default="a file in the store"),
    ] = None,
    sweep_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Name of the sweep; alone: resume it.")
    ] = None,
    dataset: DatasetOption = "mnist",
    data_dir: DataDirOption = None,
    model: ModelOption = "convnet",
    epochs: EpochsOption = None,
    seed: Annotated[int, typer.Option(metavar="N", help="First seed of each trial.")] = 0,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Settings of the runs from a file; its table sweep has those of the sweep.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, for all trials. May be repeated."
        ),
    ] = None,
    runner: RunnerOption = "local",
    address: AddressOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try many settings; the best run goes through the promotion gate."""
    started = time.perf_counter()
    base = explicit_options(
        ctx, dataset=dataset, data_dir=data_dir, model=model, epochs=epochs, seed=seed
    )
    options = explicit_options(
        ctx,
        grid=grid,
        search=search,
        trials=trials,
        seeds=seeds,
        objective=objective,
        storage=storage,
    )
    if no_prune:
        options["prune"] = False
    sweep_config = _sweep_config(base, options, config, settings or [], sweep_id=sweep_id)
    require_runner(runner, address)
    from flows.embedded_server import start_server_early

    start_server_early()  # while the sweep is opened
    from nnbuild.sweep import open_sweep, require_possible
    from nnbuild.sweep.runner import workers_of

    opened = open_sweep(sweep_config, store, sweep_id)
    require_possible(opened)
    workers = workers_of(opened, address) if address is not None else 0
    console = PlainConsole(stderr=True)
    start_prefect(console)
    result = _run_flow(opened, workers, address, console)
    if as_json:
        print_json(_summarize(result, opened, time.perf_counter() - started))
    else:
        _print_result(result)
    if result.best is None:
        raise typer.Exit(1)


def _sweep_config(
    base: Settings,
    options: Settings,
    path: Path | None,
    overrides: list[str],
    *,
    sweep_id: str | None,
) -> SweepConfig | None:
    """Return the config of a sweep, or None if only the ID of a sweep to resume is known.

    Args:
        base: Options of the runs.
        options: Options of the sweep itself.
        path: TOML file, if there is one; options take precedence.
        overrides: Settings of the runs as KEY=VALUE.
        sweep_id: ID of the sweep.

    Raises:
        ConfigError: A setting is invalid.
    """
    from nnbuild.sweep import sweep_config
    from nnbuild.sweep.space import split_file

    run_settings, sweep_settings = split_file(path)
    for name in ("grid", "search"):
        if name in options:
            options[name] = _by_key(options[name], f"--{name}")
    if sweep_id is not None and not {"grid", "search"} & {*sweep_settings, *options}:
        # The folder of the data may differ between machines; it does not belong to the sweep.
        named = base.keys() - {"data_dir"}
        if sweep_settings or options or run_settings or overrides or named:
            raise ConfigError(
                f"--id {sweep_id} without --grid or --search resumes a sweep with its own "
                "settings; remove the other options"
            )
        return None
    run_config = merge_config(run_settings, nest_options(base), path, overrides)
    return sweep_config(sweep_settings | options, run_config)


def _run_flow(
    opened: Sweep, workers: int, address: str | None, console: PlainConsole
) -> SweepResult:
    from flows.sweep import sweep as flow

    if address is not None:
        from prefect_dask.task_runners import DaskTaskRunner

        runner = DaskTaskRunner(address=address)
        # Its futures are not Prefect's class, but have the same interface.
        flow = flow.with_options(task_runner=runner)  # type: ignore[arg-type]
    return show_flow(
        lambda: flow(opened.config, opened.root, opened.sweep_id, workers),
        console,
        lambda display: display.sweep_result,
    )


def _summarize(result: SweepResult, opened: Sweep, seconds: float) -> Settings:
    return {
        "sweep_id": result.sweep_id,
        "status": "succeeded" if result.best else "failed",
        "objective": result.objective,
        "trials": [
            to_json_row(trial.model_dump()) | {"values": trial.values, "runs": trial.runs}
            for trial in result.trials
        ],
        "best": result.best,
        "promoted": result.promoted,
        "seconds": round(seconds, 3),
        "store": opened.root,
    }


def _print_result(result: SweepResult) -> None:
    from flows.sweep import rows_of

    rows = rows_of(result)
    columns = [
        name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)
    ]
    print_table(rows, columns, "no trials")
    best = "no trial finished"
    if result.best:
        best = f"{result.best}, {'promoted' if result.promoted else 'not promoted'}"
    print_line("")
    print_line(f"sweep {result.sweep_id}; best by {result.objective}: {best}")


def _by_key(texts: list[str], option: str) -> dict[str, str]:
    """Parse the arguments of an option that is repeated, such as `--grid key=text`.

    Args:
        texts: Arguments of the option.
        option: Name of the option, for messages.

    Returns:
        Text by key.

    Raises:
        ConfigError: An argument has no `=`, or two have the same key.
    """
    values: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"{option} {text!r} does not have the form key=values; "
                "write it like training.epochs=2,4"
            )
        if key.strip() in values:
            raise ConfigError(f"{option} names {key.strip()} twice; give all its values at once")
        values[key.strip()] = value
    return values
