"""`nnbuild export`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.app import Json, Store, app


@app.command(epilog="Example: nnbuild export champion --format onnx --output digits.onnx")
def export(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A committed run, or champion.")],
    format: Annotated[  # noqa: A002
        str, typer.Option("--format", metavar="savedmodel|onnx", help="What is written.")
    ] = "savedmodel",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="New file or folder; RUN_ID.onnx or RUN_ID-savedmodel here."
        ),
    ] = None,
    calibrated: Annotated[  # noqa: FBT002
        bool, typer.Option("--calibrated", help="Scale by the run's temperature.")
    ] = False,
    store: Store = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Export a run's model for a server: logits and probabilities."""
    from flows.commands import export as command

    command.export(run_id, format, output, store, calibrated=calibrated, as_json=as_json)
