"""`nnbuild sweep`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.app import Json, Store, app


@app.command(
    epilog="Example: nnbuild sweep --model lab --grid training.learning_rate=0.001,0.01 --seeds 2"
)
def sweep(
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Values of a setting; several are combined."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=RANGE", help="Let Optuna draw: log:1e-4..1e-1, 1..8 or a,b."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Of a search, in all; 20.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Runs of each trial, from --seed on; 1.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="val_accuracy|val_loss", help="What trials are compared by; val_accuracy."
        ),
    ] = None,
    no_prune: Annotated[  # noqa: FBT002
        bool, typer.Option("--no-prune", help="Let every trial of a search come to its end.")
    ] = False,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Optuna's; a file in the store.")
    ] = None,
    sweep_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Name it, or go on with it.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="As for nnbuild run.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="As for nnbuild run.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="As for nnbuild run.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="As for nnbuild run.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The first of the seeds.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Settings of the run; those of the sweep are its table 'sweep'.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting that all trials share."),
    ] = None,
    runner: Annotated[
        str | None, typer.Option(metavar="local|dask", help="Where trials are made; local.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="Of the Dask scheduler.")
    ] = None,
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Try many settings; the best by validation goes to the gate."""
    from flows.commands import sweep as command

    base: dict[str, Any] = {
        "dataset": {"name": dataset, "data_dir": data_dir},
        "model": {"name": model},
        "training": {"epochs": epochs},
        "seed": seed,
    }
    options: dict[str, Any] = {
        "grid": grid,
        "search": search,
        "trials": trials,
        "seeds": seeds,
        "objective": objective,
        "prune": False if no_prune else None,
        "storage": storage,
    }
    command.sweep(
        base,
        options,
        config,
        settings or [],
        store=store,
        sweep_id=sweep_id,
        runner=runner,
        address=address,
        as_json=as_json,
    )
