"""`nnbuild export`: the model of a run, for a model server."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.app import PUBLISH, JsonOption, StoreOption, app
from flows.cli.console import print_json, print_line


@app.command(
    rich_help_panel=PUBLISH,
    epilog="Example: nnbuild export champion --format onnx --output digits.onnx",
)
def export(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN_ID", help="Committed run, champion or champion:DATASET.")
    ],
    format: Annotated[
        Literal["savedmodel", "onnx"], typer.Option(help="Format of the model.")
    ] = "savedmodel",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="New file or folder.",
            show_default="RUN_ID.onnx or RUN_ID-savedmodel",
        ),
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide the logits by the run's temperature.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a run's model, with logits and probabilities as outputs."""
    from nnbuild.scoring.export import export_run
    from nnbuild.store import Store

    target = output or Path(f"{run_id}.onnx" if format == "onnx" else f"{run_id}-savedmodel")
    path = export_run(Store.open(store), run_id, target, format, calibrated=calibrated).absolute()
    if as_json:
        print_json(
            {"run_id": run_id, "format": format, "calibrated": calibrated, "output": str(path)}
        )
    else:
        print_line(str(path))
