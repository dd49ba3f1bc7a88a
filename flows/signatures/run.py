"""`nnbuild run`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.app import Json, Store, app


@app.command(epilog="Example: nnbuild run --dataset mnist --model convnet --epochs 12 --seed 0")
def run(
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="mnist, fashion-mnist, kmnist, digits, or a path to images."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder with the dataset's files; $NNBUILD_DATA_DIR if not given."
        ),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(metavar="digits", help="Train on these if the dataset cannot be had."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Named network, or package.module:function of your own: from the current folder, or installed.",
        ),
    ] = None,
    members: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Train N networks and average them; an ensemble is one model."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Passes over the training images.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images per step.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What training computes in: float32, mixed_bfloat16 or mixed_float16.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of the split, the weights and the order of examples."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Make N runs, with N seeds from --seed on, and tell their spread."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; options go over them.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting: training.learning_rate=0.01."
        ),
    ] = None,
    tensorboard: Annotated[  # noqa: FBT002
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs beside the run.")
    ] = False,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Log the committed run to this MLflow server or database."
        ),
    ] = None,
    store: Store = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Go on with a run that was stopped.")
    ] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Retrain, evaluate, score and commit one run."""
    from flows.commands import run as command
    from flows.commands import seeds as several

    options: dict[str, Any] = {
        "dataset": {
            "name": dataset,
            "data_dir": data_dir,
            "fallback": fallback,
        },
        "model": {"name": model, "members": members},
        "training": {
            "epochs": epochs,
            "batch_size": batch_size,
            "precision": precision,
            "tensorboard": tensorboard or None,
        },
        "seed": seed,
    }
    if seeds is not None:
        several.run(
            options,
            config,
            settings or [],
            seeds=seeds,
            store=store,
            resume=resume,
            mlflow=mlflow,
            as_json=as_json,
        )
        return
    command.run(
        options, config, settings or [], store=store, resume=resume, mlflow=mlflow, as_json=as_json
    )
