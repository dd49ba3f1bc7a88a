"""`nnbuild score`."""

from typing import Annotated, Any

import typer

from flows.app import Json, Store, app


@app.command(
    epilog="Example: nnbuild score --input 'images/*.parquet' --keep customer_id --where 'confidence < 0.6'"
)
def score(
    input: Annotated[  # noqa: A002  (it is the option's name)
        str | None,
        typer.Option(
            "--input",
            metavar="PATH|GLOB|URL",
            help="Parquet file, folder, glob or URL; IDX, .npz, pictures.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="champion|RUN_ID|FILE", help="What scores; the champion.")
    ] = None,
    digest: Annotated[str | None, typer.Option(metavar="SHA256", help="Of the model file.")] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A new folder; the store's `scores` if not given."),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns of the input to carry through.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Of integers, for example_id.")
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Parquet column of the images; image, img or images."),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Parquet column of the labels; label, labels, fine_label, target.",
        ),
    ] = None,
    pixel_max: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE", help="Pixel value that is white: 1, 255, 65535; found if not given."
        ),
    ] = None,
    max_brightness_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="Most that the mean brightness may differ from the model's reference; 10.",
        ),
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Write the logits too.")] = False,  # noqa: FBT002
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Write the K likeliest classes too.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Write only such rows: confidence < 0.6.")
    ] = None,
    calibrated: Annotated[  # noqa: FBT002
        bool, typer.Option("--calibrated", help="Scale by the run's temperature.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="auto|onnx|keras",
            help="What runs the model; auto: ONNX Runtime, or Keras if the run was not exported.",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images per batch.")] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Of the engine; all processors.")
    ] = None,
    on_error: Annotated[
        str | None,
        typer.Option(
            metavar="stop|quarantine", help="What becomes of rows that cannot be scored; stop."
        ),
    ] = None,
    drift_psi: Annotated[
        float | None,
        typer.Option(metavar="INDEX", help="Population stability index to tell of; 0.2."),
    ] = None,
    drift_ks: Annotated[
        float | None,
        typer.Option(metavar="DISTANCE", help="Kolmogorov-Smirnov distance to tell of; 0.2."),
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(metavar="N", help="Rows per file of the output, about.")
    ] = None,
    runner: Annotated[
        str | None, typer.Option(metavar="local|dask", help="Where it is scored; local.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="Of the Dask scheduler.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="DAY", help="Score the days from here whose {date} is in --input."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="The last of them.")
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(metavar="N", help="Days that are scored beside each other; 2.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="SCORE_ID", help="Go on with a job that was stopped.")
    ] = None,
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Score images of any number: softmax over logits, into the probability table."""
    from flows.commands import score as command

    options: dict[str, Any] = {
        "input": input,
        "model": model,
        "digest": digest,
        "output": output,
        "keep": keep.split(",") if keep else None,
        "id_column": id_column,
        "image_column": image_column,
        "label_column": label_column,
        "pixel_max": pixel_max,
        "max_brightness_ratio": max_brightness_ratio,
        "logits": logits or None,
        "top_k": top_k,
        "where": where,
        "calibrated": calibrated or None,
        "engine": engine,
        "batch_size": batch_size,
        "threads": threads,
        "on_error": on_error,
        "shard_rows": shard_rows,
        "drift_psi": drift_psi,
        "drift_ks": drift_ks,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if since is not None or until is not None or at_once is not None:
        from flows.commands import backfill

        backfill.require_alone(resume=resume, runner=runner, address=address)
        backfill.backfill(given, store, since=since, until=until, at_once=at_once, as_json=as_json)
        return
    command.score(given, store, resume=resume, runner=runner, address=address, as_json=as_json)
